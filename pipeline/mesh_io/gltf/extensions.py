"""Extensions that a glTF file may require: those that we read, and those that leave shape and base colour alone.

From the Khronos registry and its vendors' folders. Not among them, though a viewer may do without: other encodings of
numbers and faces (KHR_accessor_float64, EXT_mesh_primitive_restart, WEB3D_quantized_attributes), images that we do not
decode (AVIF, ASTC, SVG, video), other sources of colour (MaterialX procedurals, MDL, KHR_techniques_webgl), surfaces
that are no triangles (Gaussian splats, voxels), and what turns or replaces shapes (CESIUM_z_up, external models).
"""

from pipeline.mesh_io.gltf.buffers import MESHOPT
from pipeline.mesh_io.gltf.container import BASISU, DRACO, WEBP

INSTANCING, VISIBILITY = "EXT_mesh_gpu_instancing", "KHR_node_visibility"


def _names(prefix: str, names: str) -> set[str]:
    return {f"{prefix}_{name}" for name in names.split()}


_READ = {*MESHOPT, DRACO, BASISU, WEBP, INSTANCING, VISIBILITY} | _names(
    "KHR", "mesh_quantization texture_transform materials_unlit materials_emissive_strength"
)
_ANSWER_TO_LIGHT = (
    _names(
        "KHR_materials",
        "absorption anisotropy clearcoat clearcoat_anisotropy clearcoat_color clearcoat_darkening clearcoat_ior coat "
        "diffuse_roughness diffuse_transmission dispersion fuzz ior iridescence pbrClearcoat pbrSpecularGlossiness "
        "sheen specular sss subsurface thinfilm transmission variants volume volume_scatter",
    )
    | _names(
        "EXT_materials",
        "anisotropy_openpbr bump clearcoat_color clearcoat_darkening diffuse_roughness dispersion specular_edge_color "
        "specular_openpbr",
    )
    | _names("ADOBE_materials", "clearcoat_ior clearcoat_specular clearcoat_tint thin_transparency")
    | _names("MSFT_packing", "normalRoughnessMetallic occlusionRoughnessMetallic")
    | _names("VRMC_materials", "hdr_emissiveMultiplier mtoon")
    | {"FB_material_variants", "FB_materials_lightmap", "MOZ_lightmap"}
)
"""`KHR_materials_pbrSpecularGlossiness` holds a base colour too, which is read."""
_LIGHTS = (
    _names("KHR_lights", "area dome environment ies image_based photometric punctual rect_area shadows")
    | _names("EXT_lights", "area environment ies imageBased image_based")
    | {"EXT_camera_physical", "INTEL_lights_sunsky", "NEEDLE_lighting_settings", "OMI_environment_sky"}
)
_MOTION_AND_SOUND = (
    _names(
        "KHR",
        "animation2 animation_clip animation_controller animation_pointer audio audio_emitter audio_environment "
        "audio_graph behavior collision_shapes implicit_shapes interactivity node_hoverability node_selectability "
        "physics_rigid_bodies rigid_bodies",
    )
    | _names("EXT", "animation_quantization animation_sqlerp property_animation")
    | _names("MPEG", "anchor animation_timing audio_spatial haptic haptic_material")
    | _names(
        "OMI",
        "audio_emitter audio_ogg_vorbis audio_opus collider link personality physics_body physics_gravity "
        "physics_joint physics_shape seat spawn_point vehicle_body vehicle_hover_thruster vehicle_thruster "
        "vehicle_wheel",
    )
    | _names("VRMC", "node_constraint springBone springBone_extended_collider vrm vrm_animation")
    | {"AGI_articulations", "DRACO_animation_compression", "MAXAR_collision_geometry", "MSFT_audio_emitter"}
    | {"MSFT_collision_primitives", "VRM"}
)
_DATA_ABOUT = (
    _names("KHR", "XMP data_sizes xmp xmp_json_ld")
    | _names(
        "EXT",
        "3d_metadata feature_metadata geopose instance_features manifold mesh_features mesh_manifold mesh_polygon "
        "mesh_primitive_edge_visibility structural_metadata",
    )
    | _names("AGI", "metadata stk_metadata")
    | _names("BENTLEY_materials", "line_style planar_fill point_style")
    | _names("CESIUM", "geopose primitive_outline tile_edges")
    | _names("FB", "geometry_metadata ngon_encoding")
    | _names("NEEDLE", "components gameobject_data persistent_assets")
    | {"ADOBE_render_order", "CVTOOLS_unity_metadata", "GODOT_single_root", "GRIFFEL_bim_data"}
    | {"KITTYCAD_boundary_representation", "MOZ_hubs_components", "MSFT_lod"}
)
"""`MSFT_lod` names coarser stand-ins for a node that is drawn as it is."""
SUPPORTED_EXTENSIONS = frozenset(_READ | _ANSWER_TO_LIGHT | _LIGHTS | _MOTION_AND_SOUND | _DATA_ABOUT)
