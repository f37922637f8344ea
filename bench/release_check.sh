#!/usr/bin/env bash
# What a release has to pass (docs/releasing.md): make release-check, or with the lowest versions that pyproject.toml
# allows, make release-check ARGS=lowest; PYTHON=python3.13 for another Python. It needs 7 GB in TMPDIR, which it frees
# if all passes.
# The last commit becomes an sdist, and the sdist a wheel. Both are installed with all dependencies where nothing else is.
set -euo pipefail
cd "$(dirname "$0")/.."
python=$(command -v "${PYTHON:-python3}")
tests='tests/models tests/training/test_step.py tests/pipeline/test_precision.py tests/pipeline/test_assign.py'

work=$(mktemp -d)
trap 'if [ $? = 0 ]; then rm -rf "$work"; else echo "failed; remove $work when you have looked at it"; fi' EXIT
mkdir "$work/source" "$work/tests" "$work/elsewhere"
git archive HEAD | tar -x -C "$work/source"
cp constraints.txt "$work/versions.txt"
if [ "${1:-}" = lowest ]; then
  python - > "$work/versions.txt" <<'END'
import tomllib
for text in tomllib.load(open("pyproject.toml", "rb"))["project"]["dependencies"]:
    print(text.replace(">=", "=="))
END
fi

echo "== build and check"
python -m build --outdir "$work/dist" "$work/source" > "$work/log" 2>&1 || { cat "$work/log"; exit 1; }
wheel=("$work"/dist/conr-*.whl) sdist=("$work"/dist/conr-*.tar.gz)
ls -l "${wheel[@]}" "${sdist[@]}"
python -m twine check --strict "${wheel[@]}" "${sdist[@]}"

echo "== install the wheel in an empty environment: $("$python" --version)"
cd "$work/elsewhere"
"$python" -m venv "$work/environment"
export PATH="$work/environment/bin:$PATH"
install="python -m pip install -qq --disable-pip-version-check -c $work/versions.txt"
$install "${wheel[@]}"
python -m pip check
conr --version
conr info

echo "== run"
conr new project
cd project
sed -i -e 's/^  epochs: .*/  epochs: 1/' -e 's/^  width: .*/  width: 4/' params.yaml
dvc repro --quiet
conr info --verify

echo "== tests, of the sdist, with the installed package"
tar -x --strip-components 1 -C "$work/tests" -f "${sdist[@]}"
$install pytest pytest-timeout hypothesis pillow-heif
(cd "$work/tests" && rm -r conr stages && pytest -p no:cacheprovider $tests)

echo "== install the sdist in place of the wheel"
cd "$work/elsewhere"
packages=$(python -c 'import conr, pathlib; print(pathlib.Path(conr.__file__).parent)')
cp -r "$packages" "$work/by_wheel"
python -m pip uninstall -qq --yes conr
$install "${sdist[@]}"
diff -r --exclude __pycache__ "$work/by_wheel" "$packages"
conr --version
echo "== passed"
