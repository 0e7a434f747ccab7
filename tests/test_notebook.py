"""The notebook runs from its first cell to its last, and shows what it says it shows."""

import json
from pathlib import Path

NOTEBOOK = Path(__file__).parent.parent / "docs" / "first_steps.ipynb"


def test_the_notebook_runs():
    cells = json.loads(NOTEBOOK.read_text())["cells"]
    names: dict = {"__name__": "notebook"}
    shown = {}
    for number, cell in enumerate(cells):
        if cell["cell_type"] != "code":
            continue
        *_, last = "".join(cell["source"]).split("\n\n\n")[-1].splitlines()
        source = "".join(cell["source"])
        exec(compile(source, f"cell {number}", "exec"), names)
        if last and not last.startswith((" ", ")", "print")) and "=" not in last:
            shown[number] = eval(last.partition("#")[0], names)
    run, own = names["run"], names["own"]
    assert "pendulum" in shown[1] and "<table>" in run._repr_html_()
    assert run.status == 0 and (run.folder / "report.html").exists()
    assert names["returns"][-1] > names["returns"][0]
    assert 100_000 < run.history["time/total_timesteps"][-1] < 200_000
    film = next(x for x in shown.values() if hasattr(x, "frames"))
    assert film.frames.ndim == 4 and "video/mp4" in film._repr_html_()
    assert own.summary["final/distance"]["mean"] < 0.2
