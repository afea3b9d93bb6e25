"""Write the golden files anew."""

import shutil

from tests.golden import FOLDER, all_files

if __name__ == "__main__":
    made = all_files()
    shutil.rmtree(FOLDER, ignore_errors=True)
    for name, text in made.items():
        path = FOLDER / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
