#!/usr/bin/env python3
"""Real model servers, asked by real curators: transformers serve, and llama.cpp's server.

    uv venv VENV && uv pip install --python VENV/bin/python -r tests/peers/requirements-servers.txt
    VENV/bin/python tests/peers/model_servers.py [--bin target/debug] [--through LITELLM] [SERVER...]

No model can be had that is small enough, so one is made: two layers of a llama, with eyes (LLaVA) and without, that know by heart what
scripts/faults/endpoint.py would answer to the curators' questions. Each server is then an endpoint of a judge and of a writer of
prompts, and how their jobs end is checked. `--through` puts LiteLLM's proxy (PyPI: `litellm[proxy]`) before each. Takes some
minutes; exit code 1 if a row is not as it should be.
"""
import argparse
import json
import os
import pathlib
import random
import subprocess
import sys
import tempfile
import urllib.request

import numpy
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

ROOT = pathlib.Path(__file__).resolve().parents[2]
FAULTS = ROOT / "scripts/faults"
sys.path.append(str(FAULTS))
import cluster
import endpoints
from cluster import ran, wait

SPECIAL = ["<|pad|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>", "<image>"]
PAD, END, IMAGE = 0, 1, 5
TEMPLATE = (
    "{% for m in messages %}<|{{ m['role'] }}|>{% if m['content'] is string %}{{ m['content'] }}{% else %}"
    "{% for p in m['content'] %}{% if p['type'] == 'text' %}{{ p['text'] }}{% else %}<image>{% endif %}{% endfor %}{% endif %}"
    "<|end|>{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
# Of a picture of 32 × 32 in patches of 16.
TOKENS_A_PICTURE = 4
CONTEXT = 2048
STEPS, BATCH, RATE = 1500, 8, 3e-3
# A mean loss at which greedy answers are right, letter by letter.
KNOWN = 5e-3
# How the jobs of a judge and of a writer end, and what is said then.
SERVERS = {
    "transformers-vision": (("pairs", ""), ("pairs", "")),
    "llama.cpp-text": (("fails", "image input is not supported"), ("pairs", "")),
}


def conversations(binaries):
    """What curators ask, with the answers, from jobs with an endpoint that does all right."""
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        served = endpoints.Cluster(folder, binaries)
        try:
            for role in ("judge", "writer"):
                job_id = served.submit(f"record-{role}", "judge:right", role)
                wait(lambda job_id=job_id: served.ended(job_id), endpoints.LIMIT, "the job gets pairs")
                served.cancel(job_id)
        finally:
            served.close()
        lines = (folder / "conversations.jsonl").read_text().splitlines()
    return [json.loads(line) for line in dict.fromkeys(lines)]


def words(message):
    content = message["content"]
    return [content] if isinstance(content, str) else [part["text"] for part in content if part["type"] == "text"]


def tokenizer_of(asked):
    from transformers import PreTrainedTokenizerFast

    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer, trained.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    texts = {text for each in asked for message in each["messages"] for text in words(message)} | {each["answer"] for each in asked}
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trained.train_from_iterator(
        sorted(texts), trainers.BpeTrainer(vocab_size=1000, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False)
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=trained, eos_token=SPECIAL[END], pad_token=SPECIAL[PAD], additional_special_tokens=SPECIAL[2:]
    )
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def configs(size):
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig

    text = LlamaConfig(
        vocab_size=size,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=CONTEXT,
        bos_token_id=None,
        eos_token_id=END,
        pad_token_id=PAD,
        tie_word_embeddings=False,
    )
    vision = CLIPVisionConfig(
        image_size=32, patch_size=16, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2
    )
    both = LlavaConfig(
        text_config=text,
        vision_config=vision,
        image_token_index=IMAGE,
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
    )
    return text, both


def learn(model, tokenizer, asked):
    """Teaches the answers by heart. What stands for pictures is drawn anew each time: it must not matter."""
    random.seed(1)
    samples = []
    for each in asked:
        question = tokenizer.apply_chat_template(each["messages"], tokenize=False, add_generation_prompt=True)
        question = question.replace(SPECIAL[IMAGE], SPECIAL[IMAGE] * TOKENS_A_PICTURE)
        ids = lambda text: tokenizer(text, add_special_tokens=False)["input_ids"]
        has_pictures = any(isinstance(message["content"], list) for message in each["messages"])
        samples.append((ids(question), [*ids(each["answer"]), END], not has_pictures))
    # The few questions of a writer, whose answers are the longer ones, come as often as the many of a judge.
    rare = [sample for sample in samples if sample[2]] or samples
    body, head = model.model.language_model, model.lm_head
    parameters = [*body.parameters(), *head.parameters()]
    optimizer = torch.optim.AdamW(parameters, RATE, weight_decay=0.0)
    for step in range(STEPS):
        batch = [random.choice(rare if place % 2 else samples) for place in range(BATCH)]
        longest = max(len(question) + len(answer) for question, answer, _ in batch)
        ids, wanted = torch.full((BATCH, longest), PAD), torch.full((BATCH, longest), -100)
        for row, (question, answer, _) in enumerate(batch):
            ids[row, : len(question) + len(answer)] = torch.tensor(question + answer)
            wanted[row, len(question) : len(question) + len(answer)] = torch.tensor(answer)
        given = body.embed_tokens(ids)
        given = torch.where((ids == IMAGE)[..., None], torch.randn_like(given) * 0.05, given)
        logits = head(body(inputs_embeds=given).last_hidden_state)
        loss = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), wanted[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        for group in optimizer.param_groups:
            group["lr"] = RATE * min(1, (step + 1) / 50) * (1 - step / STEPS)
        optimizer.step()
        if loss.item() < KNOWN and step > 200:
            return print(f"learnt by heart after {step} steps", flush=True)
    raise SystemExit(f"not learnt within {STEPS} steps: the loss is {loss.item():.3f}")


def write_models(asked, folder):
    """`vision` and `text` as transformers saves them, and `text.gguf`."""
    from transformers import CLIPImageProcessor, LlamaForCausalLM, LlavaForConditionalGeneration, LlavaProcessor

    torch.manual_seed(1)
    tokenizer = tokenizer_of(asked)
    text_config, config = configs(len(tokenizer))
    model = LlavaForConditionalGeneration(config)
    learn(model, tokenizer, asked)
    projected = model.model.multi_modal_projector.linear_2
    with torch.no_grad():
        projected.weight.mul_(0.02)
        projected.bias.zero_()
    text = LlamaForCausalLM(text_config)
    text.model.load_state_dict(model.model.language_model.state_dict())
    text.lm_head.load_state_dict(model.lm_head.state_dict())
    for each in (model, text):
        each.generation_config.eos_token_id, each.generation_config.pad_token_id = END, PAD
    pictures = CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    processor = LlavaProcessor(
        image_processor=pictures,
        tokenizer=tokenizer,
        patch_size=16,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        image_token=SPECIAL[IMAGE],
    )
    processor.chat_template = TEMPLATE
    model.save_pretrained(folder / "vision")
    processor.save_pretrained(folder / "vision")
    text.save_pretrained(folder / "text")
    tokenizer.save_pretrained(folder / "text")
    write_gguf(text, folder / "text/tokenizer.json", folder / "text.gguf")


def write_gguf(text, tokenizer_file, path):
    """As llama.cpp's converter would: queries and keys in its order of rotated pairs."""
    import gguf

    config, tokenizer = text.config, json.loads(tokenizer_file.read_text())
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("tiny")
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(config.hidden_size // config.num_attention_heads)
    writer.add_rope_freq_base(float(config.rope_parameters["rope_theta"]))
    writer.add_vocab_size(config.vocab_size)
    writer.add_file_type(0)
    tokens, types = [""] * config.vocab_size, [gguf.TokenType.NORMAL] * config.vocab_size
    for token, place in tokenizer["model"]["vocab"].items():
        tokens[place] = token
    for added in tokenizer["added_tokens"]:
        tokens[added["id"]], types[added["id"]] = added["content"], gguf.TokenType.CONTROL
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_token_merges([" ".join(merge) for merge in tokenizer["model"]["merges"]])
    writer.add_eos_token_id(END)
    writer.add_pad_token_id(PAD)
    writer.add_add_bos_token(False)
    writer.add_chat_template(TEMPLATE)
    names = {
        "self_attn.q_proj": "attn_q",
        "self_attn.k_proj": "attn_k",
        "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output",
        "mlp.gate_proj": "ffn_gate",
        "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down",
        "input_layernorm": "attn_norm",
        "post_attention_layernorm": "ffn_norm",
    }
    outer = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
    for name, value in text.state_dict().items():
        module, values = name.removesuffix(".weight"), value.float().numpy()
        if module in outer:
            writer.add_tensor(f"{outer[module]}.weight", values)
            continue
        _, _, layer, inner = module.split(".", 3)
        if inner.endswith(("q_proj", "k_proj")):
            rows, columns = values.shape
            heads = config.num_attention_heads
            values = values.reshape(heads, 2, rows // heads // 2, columns).swapaxes(1, 2).reshape(rows, columns)
        writer.add_tensor(f"blk.{layer}.{names[inner]}.weight", numpy.ascontiguousarray(values))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


LLAMA = """
import sys, time, xllamacpp
params = xllamacpp.CommonParams()
params.model.path, params.hostnames, params.port = sys.argv[1], ["127.0.0.1"], int(sys.argv[2])
params.n_ctx, params.n_parallel, params.warmup, params.use_jinja = 8192, 4, False, True
server = xllamacpp.Server(params)
while True:
    time.sleep(60)
"""


def start(server, folder, port):
    """The server's process, and the model's name on it."""
    transformers = pathlib.Path(sys.executable).parent / "transformers"
    if server == "transformers-vision":
        model = str(folder / "vision")
        command = [transformers, "serve", model, "--host", "127.0.0.1", "--port", str(port)]
    else:
        model = "tiny"
        command = [sys.executable, "-c", LLAMA, folder / "text.gguf", str(port)]
    log = open(folder / f"{server}.log", "wb")
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    process = subprocess.Popen(list(map(str, command)), stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment)

    def serves():
        assert process.poll() is None, (folder / f"{server}.log").read_text()[-500:]
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5).close()
            return True
        except OSError:
            return False

    wait(serves, 180, f"{server} serves")
    return process, model


def row(served, port, model, name, role, wanted, said):
    spec = endpoints.spec(name, port, model, role)
    job_id = cluster.Cluster.submit(served, name, spec)
    ended, reason = wait(lambda: served.ended(job_id), endpoints.LIMIT, "the job gets pairs or fails")
    assert ended == wanted and said in reason, f"{ended}: {reason}"
    served.cancel(job_id)
    return f"{ended} {reason[:200]}"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bin", type=pathlib.Path, default=ROOT / "target/debug", help="folder of the programs")
    parser.add_argument("--through", type=pathlib.Path, metavar="LITELLM", help="LiteLLM's program, to put its proxy in between")
    parser.add_argument("--models", type=pathlib.Path, help="folder of the models; made if it is not there")
    parser.add_argument("servers", nargs="*", help=f"of {', '.join(SERVERS)} [default: all]")
    args = parser.parse_args()
    binaries, failed = args.bin.resolve(), 0
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        made = args.models.resolve() if args.models else folder / "models"
        if not made.exists():
            write_models(conversations(binaries), made)
        (folder / "up").mkdir()
        served = endpoints.Cluster(folder / "up", binaries)
        processes = []
        try:
            for server, (judge, writer) in SERVERS.items():
                if args.servers and server not in args.servers:
                    continue
                port = cluster.free_port()
                process, model = start(server, made, port)
                processes.append(process)
                if args.through:
                    behind, port = port, cluster.free_port()
                    url = f"http://127.0.0.1:{behind}/v1"
                    processes.append(endpoints.litellm(args.through.absolute(), folder, port, url, model))
                for role, (wanted, said) in (("judge", judge), ("writer", writer)):
                    name = f"{server.replace('.', '-')}-{role}"[:40]
                    failed += not ran(f"{server} {role}", lambda: row(served, port, model, name, role, wanted, said))
        finally:
            served.close()
            for process in reversed(processes):
                process.terminate()
                process.wait(30)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
