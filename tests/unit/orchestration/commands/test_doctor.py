"""`uniavgen doctor`: what it says of an ffmpeg that is refused."""

from pathlib import Path

from uniavgen.ingest.io.ffmpeg import ffmpeg_path
from uniavgen.orchestration.commands.doctor import check_machine
from uniavgen.orchestration.config import Config


def test_chromaprint_of_the_packaged_ffmpeg_is_found_when_the_named_one_is_refused(tmp_path: Path) -> None:
    old = tmp_path / "ffmpeg"
    old.write_text("#!/bin/sh\necho ffmpeg version 4.4.2\n")
    old.chmod(0o755)
    settings = Config.model_validate({"ingest": {"limits": {"ffmpeg": str(old)}}})
    findings = {finding["name"]: finding for finding in check_machine(settings)["findings"]}
    assert "4.4.2 is too old" in findings["ffmpeg"]["found"]
    assert not findings["ffmpeg"]["ok"]
    assert findings["chromaprint"]["ok"]
    assert findings["chromaprint"]["found"] == ffmpeg_path()
