import io
import threading

from rich.console import Console

from pippin.cli.load_display import LoadDisplay
from pippin.core.models.progress import Progress


def play(progress: Progress) -> None:
    """A whole load, from a thread that did not open the display."""

    def run() -> None:
        progress.start("download", "fetching [x]", total_bytes=100)
        for done in range(0, 101, 10):
            progress.update(done)
        progress.note("taking [another] way")
        progress.start("load", "loading x")
        progress.update(5, total_bytes=10)
        progress.finish()
        progress.finish()

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()


def test_elsewhere_than_on_a_terminal_each_stage_is_one_line() -> None:
    out = io.StringIO()
    with LoadDisplay(Console(file=out, width=40)) as display:
        play(display)
    assert out.getvalue() == "fetching [x]\ntaking [another] way\nloading x\n"


def test_on_a_terminal_bars_go_away_and_notes_stay() -> None:
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, width=100, color_system=None)
    with LoadDisplay(console) as display:
        play(display)
    assert "taking [another] way\n" in out.getvalue().replace("\r", "")
    assert not out.getvalue().endswith("loading x\n")
