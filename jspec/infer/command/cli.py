"""`python -m jspec.infer`: prompts in, text or JSON lines out.

In reading order: the flags, the prompts that they ask for, and the run that follows.
"""

from __future__ import annotations

import argparse

from jspec.config import InferConfig
from jspec.console.commands import Command
from jspec.console.compile_cache import keep_compiled_programs
from jspec.console.configs import infer_config
from jspec.console.flags import add_config_flags, add_field_flags, add_hosts_flag, file_name
from jspec.console.prompts import (
    Conversation,
    from_file,
    from_standard_input,
    from_texts,
)
from jspec.console.signals import at_work
from jspec.errors import UserError
from jspec.hosts import agreed, join_hosts
from jspec.infer.command.output import reserve_stdout

_NO_FLAG = (
    "stop",
    "stop_ids",
    "drafters",
    "drafter_options",
    "chat_template",
    "target_digest",
    "prompt",
    "weights",
)
_METAVARS = {
    "target": "PATH|ID",
    "drafter": "NAME",
    "drafter_path": "PATH|ID",
    "mesh": "data=1,layer=1,tensor=1",
    "max_new_tokens": "N",
    "temperature": "T",
    "top_k": "K",
    "top_p": "P",
    "min_p": "P",
    "seed": "S",
    "sample": "N",
    "max_length": "N",
    "batch_size": "B",
    "rounds_per_chunk": "N",
    "stop": "TEXT",
    "stop_ids": "ID",
    "system": "TEXT",
}


# --- flags ---------------------------------------------------------------------------------------


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags: where prompts come from, and one for each field of `InferConfig`."""
    parser.add_argument(
        "standard_input",
        nargs="?",
        metavar="-",
        help="prompts from standard input: JSON lines if it starts with {, else one text",
    )
    parser.add_argument("--prompt", nargs="+", action="extend", metavar="TEXT", help="prompts")
    parser.add_argument(
        "--prompts",
        type=file_name,
        metavar="FILE.jsonl",
        help="prompts, a JSON object a line: "
        '{"id", "turns" | "prompt" | "messages" | "prompt_tokens"}; '
        "its own settings win over flags; - is standard input",
    )
    add_config_flags(
        parser,
        is_training=False,
        example="drafter_options.depth=4",
        note="; flags win over it",
    )
    add_hosts_flag(parser)
    parser.add_argument(
        "--json",
        action="store_true",
        help="an object a line for every answer, and last a summary with the resolved config",
    )
    parser.add_argument(
        "--output",
        type=file_name,
        metavar="FILE",
        help="also keep every answer in FILE, an object a line, as soon as it ends; started again, "
        "the same command answers only what is not there yet",
    )
    fields = [name for name in InferConfig.model_fields if name not in _NO_FLAG]
    add_field_flags(parser, InferConfig, {name: _METAVARS.get(name) for name in fields})
    for name, flag in (("stop", "--stop"), ("stop_ids", "--stop-id")):
        parser.add_argument(
            flag,
            dest=name,
            nargs="+",
            action="extend",
            metavar=_METAVARS[name],
            help=InferConfig.model_fields[name].description,
        )


# --- prompts --------------------------------------------------------------------------------------


def make_config(args: argparse.Namespace) -> InferConfig:
    """The config that the flags ask for."""
    fields = set(InferConfig.model_fields) - {"prompt"}  # which `read_prompts` takes
    return infer_config(args.config, args.set, {name: vars(args).get(name) for name in fields})


def read_prompts(args: argparse.Namespace, config: InferConfig) -> list[Conversation]:
    """The prompts of the one source that was given."""
    if args.standard_input not in (None, "-"):
        raise UserError(
            f"unexpected {args.standard_input!r}; a prompt is given as --prompt TEXT, a file as "
            "--prompts FILE, standard input as -"
        )
    sources = {"--prompt": args.prompt, "--prompts": args.prompts, "-": args.standard_input}
    given = [name for name, value in sources.items() if value is not None]
    if not given and config.prompt:
        return from_texts(config.prompt, config)
    if len(given) != 1:
        said = f"given {' and '.join(given)}" if given else "given no prompt"
        raise UserError(f"expected --prompt TEXT, --prompts FILE or - for standard input, {said}")
    if args.prompt is not None:
        return from_texts(args.prompt, config)
    if args.prompts is not None:
        return from_file(args.prompts, config)
    return from_standard_input(config)


# --- from flags to an exit code ------------------------------------------------------------------


def _asked(args: argparse.Namespace) -> tuple[InferConfig, list[Conversation]]:
    config = make_config(args)
    return config, read_prompts(args, config)


def _run(args: argparse.Namespace, owns_process: bool) -> int:
    if args.hosts is not None and "-" in (args.standard_input, args.prompts):
        raise UserError(
            "standard input reaches one host only; with --hosts give --prompts FILE, the same "
            "file on each"
        )
    if owns_process:
        keep_compiled_programs()
        if args.hosts is not None:
            reserve_stdout()
    join_hosts(args.hosts)
    config, conversations = agreed(lambda: _asked(args))
    from jspec.infer.command.run import run

    with at_work(owns_process=owns_process):
        return run(config, conversations, as_json=args.json, output=args.output)


COMMAND = Command(
    name="infer",
    description="Generate text; with a drafter in fewer passes, and word for word the same.",
    add_arguments=add_arguments,
    run=_run,
)
make_parser, main = COMMAND.parser, COMMAND.main
