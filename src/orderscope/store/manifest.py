"""The manifest: one JSON line per finished or dropped shard, appended and never rewritten.

Each line carries a check over itself and the line before it, so a flipped bit, a line taken out and two lines
exchanged are all found. A last line cut short is what a killed writer leaves behind and is no damage. The rule of the
check and the words `schema` and `check` are the same in every schema version.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import asdict, dataclass
from urllib.parse import quote

from orderscope.errors import OrderscopeError

SCHEMA = 1
MAX_FILE_NAME = 200


@dataclass(frozen=True)
class ShardInfo:
    """What the manifest says of one finished shard.

    Args:
        name: of the shard.
        file: relative to the run.
        size: in bytes.
        sha256: of the file, in hexadecimal digits.
        schema: version of what lies on disk.
    """

    name: str
    file: str
    size: int
    sha256: str
    schema: int = SCHEMA


@dataclass(frozen=True)
class Manifest:
    """What a manifest says.

    Args:
        entries: shard name -> its sound line, in the order written.
        problems: what is wrong with other lines, in words.
        check: of the last sound line.
        length: bytes up to the end of the last whole line.
        ended: whether that line has its newline.
        dropped: files of shards that were dropped and not written again.
    """

    entries: dict[str, ShardInfo]
    problems: list[str]
    check: str
    length: int
    ended: bool
    dropped: frozenset[str] = frozenset()


class BadLine(ValueError):
    """A line that is not what was written."""


def file_name(name: str) -> str:
    """The file of a shard: `record/reference/segment-003` lies in `record+reference+segment-003.h5`.

    Different names have different files, and none leaves the run's directory; unusual characters become `%20`.

    Raises:
        OrderscopeError: no name, or one too long for a file.
    """
    file = _safe(name)
    if not name or len(file) > MAX_FILE_NAME:
        raise OrderscopeError(
            f"shard name {name!r}", f"1 to {MAX_FILE_NAME} letters, digits, '_', '.', '-' and '/'", "rename the shard"
        )
    return file + ".h5"


def line(entry: ShardInfo, previous: str) -> bytes:
    """The manifest line of a shard, newline included.

    Args:
        entry: the shard.
        previous: check of the line before; empty for the first.
    """
    fields = asdict(entry)
    return _encode(fields | {"check": _check(fields, previous)}) + b"\n"


def drop_line(name: str, previous: str) -> bytes:
    """The manifest line that takes a shard out of the run, newline included.

    Args:
        name: of the shard.
        previous: check of the line before; empty for the first.
    """
    fields = {"dropped": name, "schema": SCHEMA}
    return _encode(fields | {"check": _check(fields, previous)}) + b"\n"


def check_of(raw: bytes) -> str:
    """The check that a line made by `line` ends its chain with."""
    return json.loads(raw)["check"]


def parse(raw: bytes) -> Manifest:
    """Read a manifest.

    Raises:
        OrderscopeError: it is a sound manifest of another schema version.
    """
    *whole, tail = raw.split(b"\n")
    ended = True
    if tail and _complete(tail):
        whole.append(tail)
        ended = False
    entries: dict[str, ShardInfo] = {}
    problems: list[str] = []
    dropped: set[str] = set()
    check, length = "", 0
    for number, text in enumerate(whole, 1):
        try:
            fields = _decode(text, check)
            _refuse_other_schema(fields["schema"])
            if "dropped" in fields:
                dropped.add(entries.pop(_dropped(fields, entries)).file)
            else:
                entry = _entry(fields)
                if entry.name in entries:
                    raise BadLine
                entries[entry.name] = entry
                dropped.discard(entry.file)
        except BadLine:
            problems.append(f"manifest.jsonl, line {number}: not what was written ({_shown(text)})")
        check = _stated_check(text)
        length += len(text) + 1
    if not entries:
        _refuse_other_schema(_common_schema(whole))
    if tail and ended and _complete(tail[:-1]):
        problems.append(f"manifest.jsonl, line {len(whole) + 1}: its newline was changed ({_shown(tail)})")
    return Manifest(entries, problems, check, min(length, len(raw)), ended, frozenset(dropped))


def _encode(fields: dict) -> bytes:
    return json.dumps(fields, sort_keys=True, separators=(",", ":")).encode()


def _check(fields: dict, previous: str) -> str:
    return hashlib.sha256(previous.encode() + _encode(fields)).hexdigest()[:16]


def _decode(text: bytes, previous: str) -> dict:
    """The fields of a line whose check holds; the comparison with the canonical text catches every other change."""
    fields = _object(text)
    stated = fields.pop("check", None)
    if "schema" not in fields or stated != _check(fields, previous) or _encode(fields | {"check": stated}) != text:
        raise BadLine
    return fields


def _object(text: bytes) -> dict:
    try:
        fields = json.loads(text)
    except (ValueError, RecursionError):
        raise BadLine from None
    if not isinstance(fields, dict):
        raise BadLine
    return fields


def _complete(text: bytes) -> bool:
    try:
        return "check" in _object(text)
    except BadLine:
        return False


def _stated_check(text: bytes) -> str:
    """The check written on a line, so that one bad line is reported once and not again as a break of the chain."""
    found = re.search(rb'"check":"([0-9a-f]{16})"', text)
    return found[1].decode() if found else ""


def _entry(fields: dict) -> ShardInfo:
    """Check the contents of a line: one with a valid checksum may still be forged."""
    name, size = fields.get("name"), fields.get("size")
    if fields.keys() != ShardInfo.__dataclass_fields__.keys() or not isinstance(name, str) or not name:
        raise BadLine
    if not isinstance(size, int) or size < 0 or fields["file"] != _safe(name) + ".h5":
        raise BadLine
    return ShardInfo(**fields)


def _dropped(fields: dict, entries: dict[str, ShardInfo]) -> str:
    """The shard that a sound line takes out of the run."""
    name = fields["dropped"]
    if fields.keys() != {"dropped", "schema"} or not isinstance(name, str) or name not in entries:
        raise BadLine
    return name


def _safe(name: str) -> str:
    """Injective: '+' stands for '/' alone, '%' only begins a code, and no file begins with a dot."""
    text = re.sub(r"^\.", "%2E", quote(name, safe="/", errors="surrogatepass").replace("~", "%7E"))
    return text.replace("/", "+")


def _common_schema(lines: list[bytes]) -> object:
    """The schema that two or more lines agree on though their checks do not hold: no bit flip does that."""
    try:
        found = {json.dumps(_object(text).get("schema")) for text in lines}
    except BadLine:
        return SCHEMA
    return json.loads(found.pop()) if len(lines) > 1 and len(found) == 1 else SCHEMA


def _refuse_other_schema(schema: object) -> None:
    if schema != SCHEMA:
        raise OrderscopeError(
            f"a run of schema version {schema}",
            f"version {SCHEMA}",
            "read it with the version of orderscope that wrote it, or record it again",
        )


def _shown(text: bytes) -> str:
    shown = re.search(rb'"name":"([A-Za-z0-9_./-]{1,200})"', text)
    return f"shard {shown[1].decode()}" if shown else f"{len(text)} bytes, no readable shard name"
