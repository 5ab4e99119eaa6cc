"""Runs in Blender's interpreter, as `python -I worker REQUEST.json`; our packages never import it, nor it them.

The request is `{"answer": path, "threads": int, "commands": [{"command": "convert" | "render" | "bake", ...}]}`. The
answer, `{"blender", "start_s", "results": [{"fault": [reason, detail] | null, "seconds": {...}}]}`, in seconds of
processor time, is written last: an exit code of 0 with an answer is the only success. An exception is a bug and ends
the process."""

import json
import os
import sys
import time
from pathlib import Path
from typing import Any


def main() -> None:
    request = json.loads(Path(sys.argv[1]).read_bytes())
    import bpy
    from convert import convert
    from materials import AssetError
    from render import bake, render

    commands = {"convert": convert, "render": render, "bake": bake}
    factory_settings(request["threads"])
    answer: dict[str, Any] = {"blender": bpy.app.version_string, "start_s": time.process_time(), "results": []}
    for number, command in enumerate(request["commands"]):
        if number:
            factory_settings(request["threads"])
        try:
            result = {"fault": None, "seconds": commands[command["command"]](command)}
        except AssetError as error:
            result = {"fault": [error.reason, error.detail], "seconds": {}}
        answer["results"].append(result)
    Path(request["answer"]).write_text(json.dumps(answer))


def factory_settings(threads: int) -> None:
    """An empty scene, no scripts of assets, no network, no add-on but the glTF writer and Cycles."""
    import addon_utils
    import bpy

    bpy.ops.wm.read_factory_settings(use_empty=True)
    preferences = bpy.context.preferences
    preferences.filepaths.use_scripts_auto_execute = False
    preferences.system.use_online_access = False
    for name in [addon.module for addon in preferences.addons]:
        if name not in ("io_scene_gltf2", "cycles"):
            addon_utils.disable(name, default_set=True)
    render = bpy.context.scene.render
    render.threads_mode, render.threads = "FIXED", threads


main()
sys.stdout.flush()
os._exit(0)  # Blender 4.5 as a module waits for ever at its own end after a file with a driver
