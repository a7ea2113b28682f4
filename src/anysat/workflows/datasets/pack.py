"""The command that packs a dataset into shards for fast reading, and verifies packed folders."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from anysat.errors import RecordError
from anysat.workflows.kept import check_heard


@dataclass(frozen=True, kw_only=True)
class PackConfig:
    """Pack a dataset into shards for fast training, without loss, or verify a packed folder."""

    name: str = field(
        metadata={"positional": "NAME", "help": "Dataset: a name from `anysat datasets list`, a module or a YAML file."}
    )
    path: str = field(metadata={"positional": "PATH", "help": "Its folder; for --verify without --out, a packed one."})
    out: str | None = None
    """Folder to write. After an interruption, the same command continues from the finished shards in OUT.partial."""
    split: str = "all"
    """Splits to pack; each is written to shards of its own."""
    modalities: list[str] = field(default_factory=list)
    """Modalities to pack, such as [s2,aerial]; all if not given."""
    shard_mb: float = 256.0
    """Approximate size of a shard, in megabytes."""
    num_workers: int = 2
    """Number of processes that read and write; 0 works in the main process. The bytes written do not depend on it."""
    verify: bool = False
    """Check every byte against the checksums: of OUT after writing, or of PATH if there is no OUT."""
    overwrite: bool = False
    """Replace OUT if it is a packed dataset."""

    def __post_init__(self) -> None:
        if self.out is None and not self.verify:
            raise RecordError("--out", self.out, "a folder to write, or --verify true to check a packed one")
        if self.out is None:
            names = ("split", "modalities", "shard_mb", "num_workers", "overwrite")
            check_heard(self, names, "without --out, which writes nothing")
        if self.shard_mb <= 0:
            raise RecordError("--shard-mb", self.shard_mb, "a positive number of megabytes")
        if self.num_workers < 0:
            raise RecordError("--num-workers", self.num_workers, "0 or more")


def pack(config: PackConfig) -> str:
    """Write or verify, and return what was done."""
    written = _write(config, Path(config.out)) if config.out is not None else ""
    if not config.verify:
        return written
    return "\n".join(filter(None, (written, _verify(config, Path(config.out or config.path)))))


def _write(config: PackConfig, out: Path) -> str:
    from anysat.data.open import open_dataset
    from anysat.data.pack.write import check_out, pack_dataset
    from anysat.workflows.progress import progress_bar

    check_out(out, config.overwrite)
    dataset = open_dataset(config.name, config.path, config.split, modalities=config.modalities or None)
    with progress_bar(f"packing {dataset.name}", len(dataset)) as advance:
        pack_dataset(dataset, out, shard_mb=config.shard_mb, workers=config.num_workers, overwrite=config.overwrite,
                     advance=advance)  # fmt: skip
    shards = list(out.glob("*.tar"))
    num_bytes = sum(path.stat().st_size for path in shards)
    return f"wrote {out}: {len(dataset):,} tiles in {len(shards)} shards, {num_bytes / 1e6:,.1f} MB"


def _verify(config: PackConfig, root: Path) -> str:
    from anysat.data.open import open_dataset
    from anysat.data.pack import verify_pack
    from anysat.workflows.progress import progress_bar

    dataset = open_dataset(config.name, root, "all", layout="packed")
    with progress_bar(f"verifying {dataset.name}", len(dataset)) as advance:
        count = verify_pack(root, advance)
    return f"{root}: all checksums are correct, {count:,} tiles"
