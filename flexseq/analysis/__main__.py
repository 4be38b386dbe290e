"""python -m flexseq.analysis RUN_OR_FILE --out DIR: a report on what a network learned."""

from pathlib import Path
from typing import Annotated

import typer

from flexseq.analysis.report import load_model, write_report
from flexseq.command import failing_in_one_sentence, folder_of_results

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)


@app.command(help="Write one self-contained HTML report on the kernels of a trained network: sizes, shapes, principal components.")
def report(
    source: Annotated[
        Path, typer.Argument(metavar="RUN_OR_FILE", help="a finished run's folder, a file of flexseq.save, or an estimator's zip")
    ],
    out: Annotated[Path, typer.Option(help="the folder for report.html")],
) -> None:
    with failing_in_one_sentence(""):
        print(write_report(load_model(source), folder_of_results(out, out), title=str(source)))


if __name__ == "__main__":
    app()
