"""Coverage-guided fuzzing of one decoder with atheris: `make fuzz`.

    python tests/fuzz/fuzz.py TARGET SECONDS [CORPUS]

Inputs that reach new code are kept in CORPUS, below ~/.cache/ipfsfs-tests/fuzz by default, so that the next run goes on
from there. An input that makes the target fail, hang or take too much memory ends the run with its bytes in the corpus'
parent. Whatever is found becomes a named test beside the others of its decoder.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

REPO = Path(__file__).resolve().parents[2]
SLOW_SECONDS = 10
MEMORY_MIB = 1500


def main() -> None:
    """Never returns: libFuzzer ends the process."""
    import atheris

    name, seconds = sys.argv[1], int(sys.argv[2])
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    corpus = Path(sys.argv[3]) if len(sys.argv) > 3 else cache / "ipfsfs-tests" / "fuzz" / name
    corpus.mkdir(parents=True, exist_ok=True)
    sys.path.insert(0, str(REPO))
    with atheris.instrument_imports(include=["fused"]):
        from tests.fuzz.targets import TARGETS
    target, seeds = TARGETS[name]
    for number, seed in enumerate(seeds):
        (corpus / f"seed-{number:02d}").write_bytes(seed)
    flags = [
        f"-max_total_time={seconds}",
        f"-timeout={SLOW_SECONDS}",
        f"-rss_limit_mb={MEMORY_MIB}",
        f"-artifact_prefix={corpus.parent}/{name}-",
        "-max_len=8192",
        "-verbosity=0",
        "-print_final_stats=1",
    ]
    print(f"fuzzing {name} for {seconds} s, from {len(list(corpus.iterdir()))} inputs in {corpus}", flush=True)
    atheris.Setup([sys.argv[0], *flags, str(corpus)], target)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
