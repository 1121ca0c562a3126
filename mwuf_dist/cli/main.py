"""`mwuf ...`: the commands.

Exit codes: 0 done, 2 the user's input is wrong (no traceback), 143 stopped by SIGTERM, 130 by Ctrl-C, 1 anything else.
"""

from __future__ import annotations

import dataclasses
import errno
import functools
import os
import sys
import threading
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro
from annotated_types import Ge, Le

from mwuf_dist.cli.help import EXAMPLES, USAGE
from mwuf_dist.cli.options import (
    CompareOptions,
    PlanOptions,
    PrepareOptions,
    RecommendOptions,
    RunOptions,
    StudyOptions,
    changed,
    is_main,
    parse,
    read_options,
)
from mwuf_dist.config import UserError, build, merge, read_toml, to_dict, without_studies
from mwuf_dist.config.logs import Written
from mwuf_dist.config.registry import ROOMS
from mwuf_dist.escape import printable
from mwuf_dist.files import write_atomically
from mwuf_dist.runtime.shutdown import STOPPED_EXIT_CODE, RankLostError, StoppedError, sigterm_asks
from mwuf_dist.runtime.versions import version_problem

if TYPE_CHECKING:
    from mwuf_dist.cli.studies import Executor

# Time for the launcher to end the ranks that wait for the main one to say what is wrong.
_OTHER_RANKS_WAIT_S = 10.0
# What a disk answers, and what the user can do about it.
_DISK_SAYS = dict.fromkeys((errno.ENOSPC, errno.EDQUOT, errno.EFBIG), "make room")
_DISK_SAYS |= dict.fromkeys((errno.EACCES, errno.EPERM, errno.EROFS), "name a place that can be read and written")
_DISK_SAYS |= dict.fromkeys((errno.ENAMETOOLONG, errno.ELOOP, errno.ENOTDIR, errno.EISDIR), "name another path")
_DISK_SAYS[errno.EIO] = "the disk may be failing: look at the system's log"
# Commands that go on where they stopped; of the others nothing half-written stays.
_GOES_ON = ("run", "compare", "tune", "recommend")


@dataclass
class _InitOptions:
    logs: Annotated[Path, tyro.conf.Positional]  # File or folder of the interactions.
    check: Path | None = None  # A config: only report how LOGS differ from its own logs.
    output: Path = Path("logs.toml")  # The config to write; must not exist.
    users: str = ""  # Table of users to join.
    items: str = ""  # Table of items to join.
    user: str = ""  # Column of the user; empty: detect it.
    item: str = ""  # Column of the item.
    time: str = ""  # Column of the time; none: the order of the rows counts.
    label: str = ""  # Column of the label; none: every row is a positive.
    label_is: tuple[str, ...] = ()  # Values of the label's column that are positive.
    # Numbers of the label's column that are at least this are positive.
    label_at_least: Annotated[float | None, Ge(-1e300), Le(1e300)] = None
    missing: tuple[str, ...] = ()  # Words (or numbers) that stand for no value, beside the usual ones (NULL, NaN, ...).
    header: str = ""  # Names of the columns, separated by commas, of files without a header line.
    delimiter: str = ""  # Delimiter of the columns; empty: detect it.
    quote: str | None = None  # Character around values that contain the delimiter; none: no quotes.
    encoding: str = ""  # Encoding of text files; empty: utf-8.
    time_format: str = ""  # Format of dates, as in strptime; empty: detect it.
    users_header: str = ""  # Names of the columns of the table of users, if it has no header line.
    users_delimiter: str = ""  # Delimiter of the table of users; empty: detect it.
    users_quote: str | None = None  # Quotes of the table of users; none: no quotes.
    users_encoding: str = ""  # Encoding of the table of users; empty: utf-8.
    items_header: str = ""  # Names of the columns of the table of items, if it has no header line.
    items_delimiter: str = ""  # Delimiter of the table of items; empty: detect it.
    items_quote: str | None = None  # Quotes of the table of items; none: no quotes.
    items_encoding: str = ""  # Encoding of the table of items; empty: utf-8.
    # A column is a feature of the users (or items) if this fraction of them has one value of it.
    constant_share: Annotated[float, Ge(0), Le(1)] = 0.99


def main(argv: list[str] | None = None) -> None:
    """Entry point; does not return."""
    arguments = sys.argv[1:] if argv is None else argv
    if not arguments or arguments[0] in ("-h", "--help"):
        print(USAGE)
        sys.exit(0 if arguments else 2)
    threading.excepthook = _unless_told_elsewhere
    try:
        sys.exit(_command(arguments[0])(arguments[1:]))
    except UserError as error:
        _let_main_rank_speak()
        _say(error)
        sys.exit(2)
    except StoppedError as stop:
        _say(stop if "the same command" in str(stop) else f"{stop}; {_what_next(arguments[0])}")
        sys.exit(STOPPED_EXIT_CODE)
    except RankLostError as error:
        _say(error)
        sys.exit(1)
    except SystemExit as end:
        if end.code:  # a wrong option, which the main rank's parser tells
            _let_main_rank_speak()
        raise
    except KeyboardInterrupt:
        _say(f"stopped; {_what_next(arguments[0])}")
        sys.exit(130)
    except BrokenPipeError:
        # `mwuf ... | head`: nobody reads on. Python must not find out again when it flushes at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as error:
        if error.errno not in _DISK_SAYS:
            raise
        _say(f"{error}: {_DISK_SAYS[error.errno]}; {_what_next(arguments[0])}")
        sys.exit(2)


def _unless_told_elsewhere(ended: threading.ExceptHookArgs) -> None:
    """Shows the traceback of a thread, but of TensorBoard's on a full disk: the next event raises the same again."""
    if not (type(ended.thread).__module__.startswith("tensorboard.") and isinstance(ended.exc_value, OSError)):
        threading.__excepthook__(ended)


def _say(text: object) -> None:
    print(f"mwuf: {printable(text)}", file=sys.stderr)


def _what_next(command: str) -> str:
    if command in _GOES_ON:
        return "the same command goes on from the last checkpoint"
    return "what was there before is as it was; run the same command again"


def _command(name: str) -> Callable[[list[str]], int]:
    commands = {"run": _run, "compare": _compare, "tune": _tune, "plan": _plan, "prepare": _prepare}
    commands |= {"recommend": _recommend, "init": _init, "vectors": _vectors, "synthesize": _synthesize}
    serving = ("export", "warm", "apply", "serve-check", "explain", "adopt")
    commands |= {name: functools.partial(_serve, name) for name in serving}
    commands["doctor"] = _doctor
    if name not in commands:
        raise UserError(f"no command {name!r}: there are {', '.join(commands)}; `mwuf --help` says what they do")
    return commands[name]


def _doctor(arguments: list[str]) -> int:
    if arguments:
        print("usage: mwuf doctor\n\nPrints what this machine has, and what is wrong with it. It takes no options.")
        return 0 if arguments[0] in ("-h", "--help") else 2
    from mwuf_dist.doctor import main as doctor

    return doctor()


def _prepare(arguments: list[str]) -> int:
    options = parse("prepare", arguments, PrepareOptions)
    _check_launcher(options, "mwuf prepare")
    data, progress = options.config.data, os.isatty(2)
    if options.launcher == "ray":
        from mwuf_dist.launch import ray

        prepared = ray.prepare_data(data, options.num_workers, options.ray_address, progress)
    else:
        from mwuf_dist.data.prepare.prepare import prepare

        with sigterm_asks():
            prepared = prepare(data, progress)
    from mwuf_dist.data.both_classes import data_notes

    rows = {name: split["rows"] for name, split in prepared.manifest["splits"].items()}
    print(f"{prepared.path}\n{prepared.num_old_items} old items, {prepared.num_new_items} new items, rows: {rows}")
    for note in data_notes(prepared, data):
        print(printable(note))
    return 0


def _plan(arguments: list[str]) -> int:
    options = parse("plan", arguments, PlanOptions)
    _check_environment()
    from mwuf_dist.planning.devices import Network
    from mwuf_dist.planning.report import plan

    network = Network(options.network_gbit_per_s * 1e9 / 8, options.network_delay_ms / 1e3, options.ranks_per_host)
    size = (options.rows, options.users, options.items)
    print(plan(options.config, options.world_size, options.device, *size, network))
    return 0


def _init(arguments: list[str]) -> int:
    options = read_options(_InitOptions, arguments, "mwuf init", EXAMPLES["init"])
    if options.check is not None:
        plain = _InitOptions(logs=options.logs, check=options.check)
        given = [
            one.name for one in dataclasses.fields(plain) if getattr(plain, one.name) != getattr(options, one.name)
        ]
        if given:
            raise UserError(
                f"--{given[0].replace('_', '-')}: has no effect with --check, as {options.check} says how its logs are "
                "written; leave it out"
            )
        return _check_logs(options.check, options.logs)
    from mwuf_dist.data.init_config.propose import Asked, propose
    from mwuf_dist.data.init_config.write_config import write_config

    if options.output.exists():
        raise UserError(f"{options.output}: exists already; name another file with --output")
    same = {one.name for one in dataclasses.fields(Asked)} & {one.name for one in dataclasses.fields(options)}
    given = {name: getattr(options, name) for name in same}
    given |= {name: Written(given[name]).names for name in ("header", "users_header", "items_header")}
    asked = Asked(**given, progress=os.isatty(2))
    text = write_config(propose(str(options.logs), options.users, options.items, asked))
    try:
        write_atomically(options.output, text)
    except OSError as error:
        raise UserError(f"{options.output}: cannot be written ({error.strerror}); name another with --output") from None
    print(f"{text}\nwritten to {options.output}: read it, correct it, then `mwuf run {options.output}`")
    return 0


def _check_logs(config: Path, new: Path) -> int:
    from mwuf_dist.config import load_config
    from mwuf_dist.data.init_config.check import check_logs

    data = load_config(config).data
    if data.name != "logs":
        raise UserError(f"{config}: its data set is {data.name!r}, not own logs: --check is for configs of `mwuf init`")
    found = check_logs(data.logs, new)
    print(printable(found.text()))
    return 2 if found.faults else 0


def _synthesize(arguments: list[str]) -> int:
    from mwuf_dist.cli.synthesize import run_command

    return run_command(arguments)


def _vectors(arguments: list[str]) -> int:
    from mwuf_dist.cli.vectors import run_command

    return run_command(arguments)


def _run(arguments: list[str]) -> int:
    options = parse("run", arguments, RunOptions)
    _check_launcher(options, "torchrun --nproc-per-node=N -m mwuf_dist run")
    config = options.config
    if options.profile:
        config = dataclasses.replace(config, runtime=dataclasses.replace(config.runtime, profile=True))
    _check_environment()
    _check_studies(arguments[0])
    if options.launcher == "ray":
        from mwuf_dist.launch import ray

        results = ray.train(config, options.output, options.num_workers, options.ray_address)
    else:
        from mwuf_dist.embeddings.torchrec_import import import_torchrec

        import_torchrec()
        from mwuf_dist.launch import local

        results = local.train(config, options.output)
    if is_main():
        from mwuf_dist.evaluation import report

        if "stream" in results:
            from mwuf_dist.evaluation import stream_report

            stream_report.print_stream_comparison(stream_report.build_stream_comparison([results]))
        else:
            report.print_comparison(report.build_comparison([results]))
        print(f"results, metrics, plot and checkpoints: {options.output}")
        if config.runtime.profile:
            print(f"traces, for https://ui.perfetto.dev: {options.output / 'profile'}")
    return 0


def _check_studies(where: str) -> None:
    values = read_toml(Path(where))
    if values.keys() & {"study", "tune"}:
        from mwuf_dist.cli import studies

        studies.check_sections(values, where)


def _check_launcher(options: PrepareOptions, without_ray: str) -> None:
    if options.num_workers > 1 and options.launcher == "here":
        raise UserError(f"--num-workers is for --launcher ray; without Ray: {without_ray}")
    if options.ray_address and options.launcher == "here":
        raise UserError("--ray-address is for --launcher ray")


def _compare(arguments: list[str]) -> int:
    options = parse("compare", arguments, CompareOptions)
    _check_environment()
    from mwuf_dist.cli import studies

    where = arguments[0]
    return studies.compare_command(
        where,
        _overridden(where, options),
        options.output,
        _executor(options),
        seeds=options.seeds,
        first_seed=options.first_seed,
        record_paths=options.records,
        explained=options.explain,
    )


def _tune(arguments: list[str]) -> int:
    options = parse("tune", arguments, StudyOptions)
    _check_environment()
    from mwuf_dist.cli import studies

    where = arguments[0]
    overridden = _overridden(where, options)
    return studies.tune_command(where, options.config, overridden, options.output, _executor(options))


def _recommend(arguments: list[str]) -> int:
    options = parse("recommend", arguments, RecommendOptions)
    _check_environment()
    from mwuf_dist.cli.recommend import recommend_command

    where = arguments[0]
    overridden = _overridden(where, options)
    return recommend_command(
        where, options.config, overridden, options.output, _executor(options), options.minutes, options.methods
    )


def _overridden(where: str, options: StudyOptions) -> dict[str, Any]:
    """Finds what the command line says, which holds for every run; what a run says of itself stands above the file."""
    values, config = without_studies(read_toml(Path(where))), options.config
    of_file = build(values, where)
    names: dict[str, Any] = {
        kind: {"name": getattr(config, kind).name}
        for kind in ROOMS
        if getattr(config, kind).name != getattr(of_file, kind).name
    }
    return merge(names, changed(to_dict(config), to_dict(build(merge(values, names), where))))


def _executor(options: StudyOptions) -> Executor:
    """Says where the runs of a study are done."""
    from mwuf_dist.embeddings.torchrec_import import import_torchrec

    import_torchrec()
    from mwuf_dist.cli.studies import Executor
    from mwuf_dist.launch import local
    from mwuf_dist.launch.side_by_side import side_by_side

    num_ranks = int(os.environ.get("WORLD_SIZE", "1"))
    return Executor(
        local.train, local.pretrain, side_by_side, options.parallel, options.ray_address, is_main(), num_ranks
    )


def _serve(command: str, arguments: list[str]) -> int:
    _check_environment()
    from mwuf_dist.cli.serving import run_command

    return run_command(command, arguments)


def _let_main_rank_speak() -> None:
    # Every rank finds most mistakes: one message is enough.
    if not is_main():
        time.sleep(_OTHER_RANKS_WAIT_S)


def _check_environment() -> None:
    problem = version_problem()
    if problem is not None:
        raise UserError(problem)
    # Deprecations inside torchrec and fbgemm, which a user can do nothing about.
    warnings.filterwarnings("ignore", module=r"(torchrec|fbgemm_gpu|torch)\b")
