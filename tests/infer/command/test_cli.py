"""The command in this process: what it prints, and that every way to ask gives the same text."""

from __future__ import annotations

import io
import json
import sys

import pytest

from jspec.checkpoints.tokenizer.tokenizer import load_tokenizer
from jspec.infer.command.cli import make_config, make_parser
from jspec.infer.command.output import Output
from jspec.infer.executables import Executables

SAMPLED = ("--temperature", "0.8", "--top-k", "40", "--seed", "5")
SHORT = ("--max-new-tokens", "16", "--max-length", "128")

STATS = {
    "new_tokens",
    "target_calls",
    "tokens_per_call",
    "draft_tokens_accepted",
    "draft_tokens_proposed",
    "accepted_by_depth",
    "prefill_s",
    "decode_s",
    "wall_s",
    "tokens_per_s",
    "row_tokens_per_s",
    "compile_s",
    "compilations",
    "drafter",
    "rule",
}


def jsonl(path, *records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


def answers(run) -> list[dict]:
    assert run.code == 0, run.err
    assert "summary" in run.records[-1]
    return run.records[:-1]


def test_json_has_every_promised_key(checkpoints, infer):
    run = infer("--target", checkpoints.chat, "--prompt", "the cat", *SHORT, "--json")
    (answer,) = answers(run)
    tokenizer = load_tokenizer(checkpoints.chat)
    assert tokenizer is not None
    assert set(answer) >= {
        *("id", "turn", "prompt", "prompt_tokens", "tokens", "text", "stop_reason", "stats")
    }
    assert set(answer["stats"]) >= STATS
    assert answer["prompt"] == "the cat" and answer["turn"] == 1
    expected = tokenizer.encode_chat([{"role": "user", "content": "the cat"}])
    assert answer["prompt_tokens"] == list(expected)
    assert answer["text"] == tokenizer.decode(answer["tokens"])
    assert answer["stats"]["new_tokens"] == len(answer["tokens"]) == 16
    assert answer["stats"]["target_calls"] == 15 and answer["stats"]["tokens_per_call"] == 1.0
    summary = run.records[-1]["summary"]
    assert summary["config"]["max_new_tokens"] == 16 and summary["complete"] is True
    assert set(summary["stats"]) >= STATS


def test_a_chunk_has_as_many_rounds_as_asked(checkpoints, infer, monkeypatch):
    rounds, chunk = [], Executables.chunk

    def spy(programs, *given):
        rounds.append(programs.rounds)
        return chunk(programs, *given)

    monkeypatch.setattr(Executables, "chunk", spy)
    asked = ("--target", checkpoints.chat, "--prompt", "the cat", *SHORT, "--json")
    (answer,) = answers(infer(*asked, "--rounds-per-chunk", "3"))
    assert set(rounds) == {3}
    rounds.clear()
    (other,) = answers(infer(*asked))
    assert set(rounds) == {8} and other["tokens"] == answer["tokens"]


def test_text_goes_to_stdout_and_numbers_to_stderr(checkpoints, infer):
    asked = ("--target", checkpoints.chat, "--prompt", "the cat", *SHORT)
    (answer,) = answers(infer(*asked, "--json"))
    run = infer(*asked)
    assert run.code == 0
    assert run.out == answer["text"] + "\n"
    for said in (
        "memory",
        "16 new tokens (max_tokens)",
        "tokens/s | prefill",
        "15 target calls",
        "compiled",
    ):
        assert said in run.err


@pytest.mark.usefixtures("steady_progress")
def test_how_far_it_is_goes_to_stderr_unless_text_streams_to_a_terminal(
    checkpoints, infer, monkeypatch
):
    asked = ("--target", checkpoints.chat, "--prompt", "the cat", "the dog", *SHORT)
    run = infer(*asked, "--compare", "--drafter", "prompt-lookup")
    lines = [line for line in run.err.splitlines() if line.startswith("1/2 answers | ")]
    assert any(" tokens/s | about " in line for line in lines) and "/2 answers" not in run.out
    monkeypatch.setattr(Output, "is_terminal", True)
    assert "/2 answers" not in infer(*asked).err
    assert "1/2 answers" in infer(*asked, "--json").err


def test_every_drafter_gives_the_text_of_plain_decoding(checkpoints, infer, tmp_path):
    file = jsonl(
        tmp_path / "p.jsonl",
        {"id": "a", "prompt_tokens": [0, 5, 9, 5, 9], "temperature": 0},
        {"id": "b", "prompt": "there was a little house", "top_p": 0.9},
        {"id": "c", "turns": ["the dog"], "sample": 3, "max_new_tokens": 7},
    )
    asked = ("--target", checkpoints.chat, "--prompts", file, *SHORT, *SAMPLED, "--json")
    plain = answers(infer(*asked))
    assert [answer["id"] for answer in plain] == ["a", "b", "c"]
    assert plain[2]["stats"]["new_tokens"] == 7
    drafted = answers(
        infer(*asked, "--drafter", "draft-model", "--drafter-path", checkpoints.small)
    )
    batched = answers(infer(*asked, "--drafter", "prompt-lookup", "--batch-size", "2"))
    for other in (drafted, batched):
        assert [a["tokens"] for a in other] == [a["tokens"] for a in plain]
        assert [a["text"] for a in other] == [a["text"] for a in plain]
    assert any(a["stats"]["draft_tokens_accepted"] for a in drafted)


def test_a_target_without_tokenizer_answers_in_tokens(checkpoints, infer, tmp_path):
    file = jsonl(tmp_path / "p.jsonl", {"prompt_tokens": [0, 5, 9]})
    asked = ("--target", checkpoints.bare, "--prompts", file, *SHORT)
    (answer,) = answers(infer(*asked, "--json"))
    assert answer["text"] is None and answer["prompt"] is None
    assert infer(*asked).out.split() == [str(token) for token in answer["tokens"]]


def test_turns_are_a_conversation(checkpoints, infer, tmp_path):
    file = jsonl(
        tmp_path / "p.jsonl",
        {"id": "long", "turns": ["hi", "and then?"]},
        {"id": "short", "turns": ["hello"]},
    )
    asked = ("--target", checkpoints.chat, "--prompts", file, *SHORT)
    found = answers(infer(*asked, "--system", "kind", "--json"))
    assert [(a["id"], a["turn"]) for a in found] == [("long", 1), ("short", 1), ("long", 2)]
    tokenizer = load_tokenizer(checkpoints.chat)
    assert tokenizer is not None
    messages = [
        {"role": "system", "content": "kind"},
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": found[0]["text"]},
        {"role": "user", "content": "and then?"},
    ]
    assert found[2]["prompt_tokens"] == list(tokenizer.encode_chat(messages))
    text = infer(*asked).out
    assert "[long, turn 1]\n" in text and "[short]\n" in text and "[long, turn 2]\n" in text


def test_a_turn_without_room_ends_its_conversation(checkpoints, infer, tmp_path):
    file = jsonl(tmp_path / "p.jsonl", {"turns": ["a" * 40, "b" * 40, "c"]})
    run = infer(
        *("--target", checkpoints.chat, "--prompts", file, "--max-new-tokens", "16", "--json"),
        *("--max-length", "64"),
    )
    first, second = answers(run)
    assert second["tokens"] == [] and second["stop_reason"] == "length"
    assert "turn 2 has no room" in run.err
    assert first["stats"]["new_tokens"] > 0


def test_where_an_answer_ends(checkpoints, infer):
    asked = ("--target", checkpoints.chat, "--prompt", "the cat", "--raw", "--json")
    (free,) = answers(infer(*asked, *SHORT))
    assert free["stop_reason"] == "max_tokens"
    (short,) = answers(infer(*asked, "--max-new-tokens", "500", "--max-length", "20"))
    assert short["stop_reason"] == "length"
    assert len(short["prompt_tokens"]) + len(short["tokens"]) == 20
    n = len(short["tokens"])
    assert short["tokens"][: min(n, 16)] == free["tokens"][:n]


def test_stop_strings_end_text_and_tokens(checkpoints, infer):
    asked = ("--target", checkpoints.chat, "--prompt", "the cat", *SHORT)
    (free,) = answers(infer(*asked, "--json"))
    stop = next(c for c in free["text"][4:] if c.isascii() and free["text"].count(c) == 1)
    for drafter in ("none", "prompt-lookup"):
        drafted = (*asked, "--stop", stop, "never there", "--drafter", drafter)
        (cut,) = answers(infer(*drafted, "--json"))
        assert cut["stop_reason"] == "stop_string"
        assert cut["text"] == free["text"][: free["text"].index(stop)]
        assert cut["tokens"] == free["tokens"][: len(cut["tokens"])]
        assert infer(*drafted).out == cut["text"] + "\n"


def test_a_stop_string_wins_over_the_last_token_and_loses_to_nothing_before(checkpoints, infer):
    asked = ("--target", checkpoints.chat, "--prompt", "the cat", "--max-length", "128", "--json")
    (free,) = answers(infer(*asked, "--max-new-tokens", "16"))
    tokenizer = load_tokenizer(checkpoints.chat)
    assert tokenizer is not None
    place = next(
        i
        for i in range(1, 16)
        if tokenizer.decode(free["tokens"][: i + 1])[-1:].isascii()
        and tokenizer.decode(free["tokens"][: i + 1]).startswith(
            tokenizer.decode(free["tokens"][:i])
        )
    )
    stop = tokenizer.decode(free["tokens"][: place + 1])[-1]
    kept = free["text"].index(stop)
    (cut,) = answers(infer(*asked, "--max-new-tokens", place + 1, "--stop", stop))
    assert cut["stop_reason"] == "stop_string" and cut["text"] == free["text"][:kept]


def test_stop_tokens_are_kept_in_tokens_and_not_in_text(checkpoints, infer, tmp_path):
    asked = ("--prompt", "the cat", *SHORT, "--json")
    (free,) = answers(infer("--target", checkpoints.chat, *asked))
    folder = checkpoints.copy("chat", tmp_path)
    ids = [free["tokens"][9], free["tokens"][5]]
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": ids}))
    (stopped,) = answers(infer("--target", folder, *asked))
    first = min(free["tokens"].index(token) for token in ids)
    assert stopped["tokens"] == free["tokens"][: first + 1]
    assert stopped["stop_reason"] == "stop_token"
    tokenizer = load_tokenizer(folder)
    assert tokenizer is not None
    assert stopped["text"] == tokenizer.decode(stopped["tokens"][:-1])
    (ignored,) = answers(infer("--target", folder, *asked, "--ignore-eos"))
    assert ignored["tokens"] == free["tokens"]


def test_compare_decodes_plainly_as_well(checkpoints, infer, tmp_path):
    file = jsonl(tmp_path / "p.jsonl", *({"prompt_tokens": [0, i, i]} for i in range(5, 8)))
    asked = ("--target", checkpoints.bare, "--prompts", file, *SHORT, *SAMPLED, "--compare")
    asked = (*asked, "--drafter", "prompt-lookup", "--batch-size", "2")
    run = infer(*asked, "--json")
    for answer in answers(run):
        assert answer["identical"] is True and answer["first_difference"] is None
        assert answer["near_ties"] == 0 and answer["speedup"] > 0
        assert set(answer["baseline"]) >= STATS and answer["baseline"]["drafter"] == "none"
        own, plain = (answer[key]["row_tokens_per_s"] for key in ("stats", "baseline"))
        assert answer["speedup"] == pytest.approx(own / plain)
        assert answer["stats"]["tokens_per_s"] is None
    summary = run.records[-1]["summary"]
    assert summary["identical"] is True
    stats, baseline = summary["stats"], summary["baseline"]
    assert stats["tokens_per_s"] == pytest.approx(48 / stats["wall_s"])
    assert summary["speedup"] == pytest.approx(stats["tokens_per_s"] / baseline["tokens_per_s"])
    for key, total in (("stats", stats), ("baseline", baseline)):
        assert total["wall_s"] < sum(answer[key]["wall_s"] for answer in answers(run))
        assert total["row_tokens_per_s"] is None
    assert f"total: 48 new tokens | {stats['tokens_per_s']:.1f} tokens/s | " in run.err
    told = infer(*asked).err
    assert "identical to plain decoding" in told and "tokens/s in its row | " in told


def test_under_rejection_texts_are_not_compared(checkpoints, infer):
    asked = ("--target", checkpoints.chat, "--prompt", "the cat", *SHORT, *SAMPLED, "--compare")
    copying = ("--drafter", "prompt-lookup", "--rule", "rejection")
    (answer,) = answers(infer(*asked, *copying, "--json"))
    assert answer["identical"] is None and answer["stats"]["rule"] == "rejection"


def test_trace_tells_where_every_token_came_from(checkpoints, infer):
    asked = ("--target", checkpoints.chat, "--prompt", "the cat the cat", *SHORT, "--trace")
    small = ("--drafter", "draft-model", "--drafter-path", checkpoints.small)
    (answer,) = answers(infer(*asked, *small, "--json"))
    trace = answer["trace"]
    assert len(trace) == len(answer["tokens"])
    drafted = sum(token["depth"] > 0 for token in trace)
    assert drafted == answer["stats"]["draft_tokens_accepted"]
    assert all(token["logprob"] <= 1e-6 and token["gap"] >= 0 for token in trace)
    table = infer(*asked, *small).err
    assert "target" in table and "depth 1" in table


def test_standard_input_is_a_prompt_or_a_file(checkpoints, infer, monkeypatch):
    def given(data: bytes, *argv):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))
        return answers(infer("--target", checkpoints.chat, *SHORT, "--json", *argv))

    (text,) = given(b"the cat\n", "-")
    (line,) = given(b'{"prompt": "the cat", "id": "x"}\n', "-")
    (file,) = given(b'{"prompt": "the cat"}\n', "--prompts", "-")
    assert text["prompt_tokens"] == line["prompt_tokens"] == file["prompt_tokens"]
    assert text["tokens"] == line["tokens"] == file["tokens"] and line["id"] == "x"


def test_flags_win_over_set_and_set_over_the_config(tmp_path):
    config = tmp_path / "run.yaml"
    config.write_text(
        "target: somewhere\ntemperature: 0.5\nseed: 1\nmax_new_tokens: 4\n"
        "drafter: draft-model\ndrafter_options: {depth: 2, width: 2}\ndrafter_path: small\n"
    )

    def resolved(*argv):
        asked = ["--config", str(config), "--seed", "9", *argv]
        return make_config(make_parser().parse_args(asked))

    one = resolved("--set", "temperature=0", "seed=7", "drafter_options.depth=3", "--raw")
    assert (one.temperature, one.seed, one.max_new_tokens, one.raw) == (0.0, 9, 4, True)
    assert one.drafter_options == {"depth": 3, "width": 2} and one.drafter_path == "small"
    other = resolved("--drafter", "prompt-lookup", "--set", "drafter_options.depth=3")
    assert other.drafter_options == {"depth": 3} and other.drafter_path is None
    assert resolved("--no-raw").raw is False


def test_several_texts_of_one_seed_differ_by_sample(checkpoints, infer):
    asked = ("--target", checkpoints.chat, "--prompt", "the cat", *SHORT, *SAMPLED, "--json")
    texts = [answers(infer(*asked, "--sample", n))[0]["tokens"] for n in (0, 1, 0)]
    assert texts[0] == texts[2] != texts[1]


def test_a_drafter_that_is_never_right_is_a_warning(checkpoints, infer, tmp_path):
    always = {"prompt_tokens": [0, 7, 7, 7, 7, 7], "temperature": 5.0, "max_new_tokens": 100}
    file = jsonl(tmp_path / "p.jsonl", *({**always, "sample": i} for i in range(6)))
    run = infer("--target", checkpoints.bare, "--prompts", file, "--drafter", "prompt-lookup")
    accepted = "0 of " in run.err.split("total:")[-1]
    assert ("warning: drafter prompt-lookup: none of" in run.err) == accepted


def test_ids_given_twice_are_a_warning_and_keep_their_order(checkpoints, infer, tmp_path):
    same = [{"id": "x", "prompt_tokens": [0, 5], "sample": i} for i in (0, 1)]
    file = jsonl(tmp_path / "p.jsonl", *same)
    run = infer("--target", checkpoints.bare, "--prompts", file, *SHORT, *SAMPLED, "--json")
    assert [a["settings"]["sample"] for a in answers(run)] == [0, 1]
    assert "several prompts have the id 'x'" in run.err


def test_help_lists_every_flag_with_its_default(infer):
    run = infer("--help")
    assert "(default: None)" not in run.out and "(default: )" not in run.out
    assert run.code == 0
    for flag in (
        *("--config", "--target", "--drafter", "--drafter-path", "--dtype", "--prompt"),
        *("--prompts", "--max-new-tokens", "--temperature", "--top-k", "--top-p", "--min-p"),
        *("--seed", "--sample", "--stop", "--ignore-eos", "--max-length", "--rule", "--set"),
        *("--batch-size", "--mesh", "--system", "--raw", "--trace", "--compare", "--json"),
    ):
        assert f"{flag} " in run.out or f"{flag}," in run.out or f"{flag}\n" in run.out
    assert "(default: 256)" in " ".join(run.out.split())
