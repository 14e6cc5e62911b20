"""What the lessons came to when they were last measured, kept beside their files."""

import json
import pathlib

from gpt2_flax.files.atomic import replacing, write_text
from lessons.report import Finding, Report

FOLDER = pathlib.Path(__file__).parent / "outcomes"
STUDIES = FOLDER.with_name("studies")  # rows of sweeps that took hours


def keep(name: str, report: Report, seconds: float) -> None:
  """Writes a lesson's outcome: its tables and findings, and its picture."""
  keep_picture(report, FOLDER / f"{name}.png")
  findings = [{"text": f.text, "holds": bool(f.holds)} for f in report.findings]
  outcome = {"seconds": seconds, "findings": findings, "tables": report.tables}
  write_text(FOLDER / f"{name}.json", json.dumps(outcome, indent=1) + "\n")


def keep_picture(report: Report, path: pathlib.Path) -> None:
  """Writes the picture, and the folders that it is in."""
  path.parent.mkdir(parents=True, exist_ok=True)
  with replacing(path) as temporary:
    report.figure.savefig(temporary, format="png")


def kept(name: str) -> tuple[Report, float] | None:
  """A lesson's last outcome, without the picture, and the seconds that it took.

  None for a lesson that has not been measured.
  """
  path = FOLDER / f"{name}.json"
  if not path.exists():
    return None
  outcome = json.loads(path.read_text("utf-8"))
  findings = [Finding(**finding) for finding in outcome["findings"]]
  return Report(outcome["tables"], findings, None), outcome["seconds"]
