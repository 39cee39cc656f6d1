"""Train tiny-austen: a Qwen2 language model of 3.4 million weights, on six novels.

    pip install torch numpy tokenizers safetensors matplotlib
    python train.py                                     # fetches the text with apt-get
    python train.py r-cran-janeaustenr_1.0.0-1_all.deb  # or reads the package you have

Needs one CUDA GPU, a few minutes, and dpkg-deb. Writes tokenizer.json, config.json,
model.safetensors and loss.png beside this file.

The whole difficulty is that there are only 3.8 MB of text: a model that fits in 8 MB
can learn it by heart, and then writes worse. Three things hold that off, judged on text
that no model is trained on (the last 5% of each novel):
  - dropout, and a weight decay ten times the usual;
  - of each run, the weights with the lowest held-out loss are kept;
  - distillation: models of several shapes are trained, to compare the shapes, and then
    teach the one that ships. The mean of their predictions is better than any one of
    them, and says more than the single token that happened to follow.
"""

import glob
import io
import json
import math
import os
import re
import struct
import subprocess
import sys
import tarfile
import tempfile
import time
import zlib
from dataclasses import asdict, dataclass

import matplotlib.pyplot as plt
import torch
import torch.nn as nn
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

HERE = os.path.dirname(os.path.abspath(__file__))
SEED = 1
EOT = "<|endoftext|>"  # begins every chapter; token 0
CONTEXT = 1024  # tokens in a training window, and the most the model can look back on
BATCH = 16  # windows in a step
HELD_OUT = 0.05  # of each novel, its end

# The text


def read_novels(deb):
    """The novels in Debian's r-cran-janeaustenr, one string each.

    The package keeps them as R does: one file of compressed chunks, each chunk one
    serialised vector of strings, each string one line of a book. All integers are
    big-endian.
    """
    tar = subprocess.run(["dpkg-deb", "--fsys-tarfile", deb], stdout=subprocess.PIPE, check=True)
    with tarfile.open(fileobj=io.BytesIO(tar.stdout)) as files:
        path = "./usr/lib/R/site-library/janeaustenr/data/Rdata.rdb"
        chunks = files.extractfile(path).read()
    novels = []
    while chunks:
        unzip = zlib.decompressobj()
        raw = unzip.decompress(chunks[4:])  # 4 bytes: the size once decompressed
        chunks = unzip.unused_data
        at = 14  # past "X\n" and three version numbers
        at += 4 + struct.unpack_from(">I", raw, at)[0]  # past the name of the encoding
        _type, count = struct.unpack_from(">II", raw, at)
        at += 8
        lines = []
        for _ in range(count):
            _type, size = struct.unpack_from(">II", raw, at)
            lines.append(raw[at + 8 : at + 8 + size].decode())
            at += 8 + size
        novels.append("\n".join(lines))
    return novels


def clean(novel):
    """The chapters alone, each after an EOT, a paragraph to a line, blank lines between."""
    novel = novel.split("A NOTE ON THE TEXT")[0]
    novel = re.sub(r"\[[^\]]*\]|\(End of volume one\.\)|\*Vide.*", "", novel)  # editors' notes
    novel = re.sub(r"[_*]", "", novel)  # _emphasis_ and rows of asterisks
    novel = re.sub(r"\b(Mr|Mrs|Dr)\b(?!\.)", r"\1.", novel)  # one novel spells them without
    chapters = re.split(r"(?mi)^\s*chapter [ivxl\d]+\s*$", novel)[1:]
    out = ""
    for chapter in chapters:
        paragraphs = [" ".join(p.split()) for p in re.split(r"\n\s*\n", chapter)]
        furniture = r"VOLUME [IVX]+|FINIS|Finis|THE END|"
        out += EOT + "\n\n".join(p for p in paragraphs if not re.fullmatch(furniture, p))
    return out


def load_text(deb):
    """The text to train on, and the text to judge by."""
    train, held = "", ""
    for novel in map(clean, read_novels(deb)):
        cut = novel.index("\n\n", int(len(novel) * (1 - HELD_OUT)))
        train += novel[:cut]
        held += EOT + novel[cut + 2 :]
    return train + EOT, held + EOT


# The tokenizer: byte-level BPE, the text first split by the regular expression of Qwen2

SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def train_tokenizer(text, vocab_size):
    tok = Tokenizer(models.BPE())
    split = pre_tokenizers.Split(Regex(SPLIT), "isolated")
    bytes_ = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tok.pre_tokenizer = pre_tokenizers.Sequence([split, bytes_])
    tok.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        # The two chat marks never occur in a novel: they are there because programs
        # written for Qwen2 look them up.
        special_tokens=[EOT, "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tok.train_from_iterator(text.split(EOT), trainer)
    return tok


# The model: Qwen2, its fields and modules under the names that its checkpoints use, so
# that the weights need no renaming


@dataclass
class Config:
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    max_position_embeddings: int = CONTEXT
    rope_theta: float = 10000.0
    rms_norm_eps: float = 1e-6


def rotate(x, cos, sin):
    """Rotary positions: entry i of a head turns with entry i + head_dim/2."""
    a, b = x.chunk(2, dim=-1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1).to(x.dtype)


class Attention(nn.Module):
    def __init__(self, c, dropout):
        super().__init__()
        self.dropout = dropout
        self.head_dim = c.hidden_size // c.num_attention_heads
        self.group = c.num_attention_heads // c.num_key_value_heads
        self.q_proj = nn.Linear(c.hidden_size, c.hidden_size)
        self.k_proj = nn.Linear(c.hidden_size, c.hidden_size // self.group)
        self.v_proj = nn.Linear(c.hidden_size, c.hidden_size // self.group)
        self.o_proj = nn.Linear(c.hidden_size, c.hidden_size, bias=False)

    def forward(self, x, cos, sin):
        q, k, v = (
            p(x).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)  # batch, head, time, entry
            for p in (self.q_proj, self.k_proj, self.v_proj)
        )
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        # Grouped queries: each key-value head serves several query heads.
        k, v = k.repeat_interleave(self.group, 1), v.repeat_interleave(self.group, 1)
        dropout = self.dropout if self.training else 0.0
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True, dropout_p=dropout)
        return self.o_proj(y.transpose(1, 2).flatten(2))


class MLP(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.gate_proj = nn.Linear(c.hidden_size, c.intermediate_size, bias=False)
        self.up_proj = nn.Linear(c.hidden_size, c.intermediate_size, bias=False)
        self.down_proj = nn.Linear(c.intermediate_size, c.hidden_size, bias=False)

    def forward(self, x):
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Layer(nn.Module):
    def __init__(self, c, dropout):
        super().__init__()
        self.input_layernorm = nn.RMSNorm(c.hidden_size, eps=c.rms_norm_eps)
        self.self_attn = Attention(c, dropout)
        self.post_attention_layernorm = nn.RMSNorm(c.hidden_size, eps=c.rms_norm_eps)
        self.mlp = MLP(c)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x, cos, sin):
        x = x + self.dropout(self.self_attn(self.input_layernorm(x), cos, sin))
        return x + self.dropout(self.mlp(self.post_attention_layernorm(x)))


class Qwen2(nn.Module):
    def __init__(self, c, dropout=0.0):
        super().__init__()
        self.model = nn.ModuleDict()
        self.model["embed_tokens"] = nn.Embedding(c.vocab_size, c.hidden_size)
        self.model["layers"] = nn.ModuleList(Layer(c, dropout) for _ in range(c.num_hidden_layers))
        self.model["norm"] = nn.RMSNorm(c.hidden_size, eps=c.rms_norm_eps)
        self.dropout = nn.Dropout(dropout)
        head_dim = c.hidden_size // c.num_attention_heads
        speeds = c.rope_theta ** -(torch.arange(0, head_dim, 2).float() / head_dim)
        angles = torch.outer(torch.arange(c.max_position_embeddings).float(), speeds)
        self.register_buffer("cos", angles.cos(), persistent=False)
        self.register_buffer("sin", angles.sin(), persistent=False)
        for name, p in self.named_parameters():
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                # Each layer adds to the stream twice: start with small additions.
                nn.init.normal_(p, std=0.02 / math.sqrt(2 * c.num_hidden_layers))
            elif p.dim() == 2:
                nn.init.normal_(p, std=0.02)
            elif name.endswith("bias"):
                nn.init.zeros_(p)

    def forward(self, ids):
        T = ids.shape[1]
        x = self.dropout(self.model["embed_tokens"](ids))
        for layer in self.model["layers"]:
            x = layer(x, self.cos[:T], self.sin[:T])
        # The output layer is the embedding again ("tied"): no weights of its own.
        return F.linear(self.model["norm"](x), self.model["embed_tokens"].weight)


# Training


@torch.no_grad()
def held_out_loss(model, held):
    """Mean nats per token over the held-out text, cut in windows that do not overlap."""
    model.eval()
    x, y = held[:-1].view(-1, CONTEXT), held[1:].view(-1, CONTEXT)
    loss = F.cross_entropy(model(x).float().flatten(0, 1), y.flatten()).item()
    model.train()
    return loss


def train(c, tokens, held, epochs, dropout, teachers=(), seed=SEED, peak_lr=3e-3, evals=40):
    """The model with the lowest held-out loss on the way, and the curves:
    (epoch, loss on the text trained on, held-out loss)."""
    torch.manual_seed(seed)
    model = Qwen2(c, dropout).cuda()
    torch.compiler.reset()  # forget the last model's code: torch keeps few versions of one function
    fast = torch.compile(model, dynamic=False)
    matrices = [p for p in model.parameters() if p.dim() == 2]
    vectors = [p for p in model.parameters() if p.dim() < 2]
    groups = [{"params": matrices, "weight_decay": 1.0}, {"params": vectors, "weight_decay": 0.0}]
    opt = torch.optim.AdamW(groups, lr=peak_lr, betas=(0.9, 0.95), fused=True)

    windows = (len(tokens) - CONTEXT - 1) // CONTEXT
    steps_per_epoch = windows // BATCH
    steps = steps_per_epoch * epochs
    within = torch.arange(CONTEXT, device="cuda")
    curve, recent, best, best_weights = [], [], math.inf, None
    for step in range(steps):
        if step % steps_per_epoch == 0:  # a new epoch: new cuts, in a new order
            starts = torch.randperm(windows, device="cuda") * CONTEXT
            starts += torch.randint(CONTEXT, (1,), device="cuda")
        batch = step % steps_per_epoch * BATCH
        at = starts[batch : batch + BATCH, None] + within
        x, y = tokens[at], tokens[at + 1].flatten()

        with torch.autocast("cuda", torch.bfloat16):
            logits = fast(x)
        log_probs = F.log_softmax(logits.float().flatten(0, 1), dim=-1)
        loss = F.nll_loss(log_probs, y)
        recent.append(loss.detach())
        if teachers:
            with torch.no_grad(), torch.autocast("cuda", torch.bfloat16):
                target = sum(F.softmax(t(x).float().flatten(0, 1), dim=-1) for t in teachers)
            taught = -(target / len(teachers) * log_probs).sum(dim=-1).mean()
            loss = 0.1 * loss + 0.9 * taught

        opt.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for group in opt.param_groups:  # up over 100 steps, then straight down to zero
            group["lr"] = peak_lr * min((step + 1) / 100, 1 - step / steps)
        opt.step()

        if (step + 1) % (steps // evals) == 0 or step + 1 == steps:
            now = held_out_loss(model, held)
            curve.append(((step + 1) / steps_per_epoch, torch.stack(recent).mean().item(), now))
            recent = []
            if now < best:
                best = now
                best_weights = {k: v.detach().clone() for k, v in model.state_dict().items()}
    model.load_state_dict(best_weights)
    return model.eval().requires_grad_(False), curve


@torch.no_grad()
def sample(model, ids, count, temperature=0.8, top_p=0.9):
    for _ in range(count):
        logits = model(torch.tensor([ids], device="cuda"))[0, -1].float()
        probs, order = F.softmax(logits / temperature, dim=-1).sort(descending=True)
        probs[probs.cumsum(0) - probs >= top_p] = 0  # keep the fewest that reach top_p
        ids = ids + [order[torch.multinomial(probs, 1)].item()]
        if ids[-1] == 0:  # EOT: the chapter is over
            break
    return ids


# The plan: train every shape, then let the shapes with one vocabulary teach the best of
# them. All are sized to stay under 7.5 MB in f16.

VOCAB = 4096
SHAPES = [
    # vocabulary, width, MLP width, layers, heads, key-value heads
    Config(2048, 192, 512, 8, 6, 2),
    Config(8192, 192, 512, 5, 6, 2),
    Config(VOCAB, 256, 640, 4, 8, 2),
    Config(VOCAB, 224, 608, 5, 7, 1),
    Config(VOCAB, 192, 512, 7, 6, 2),
    Config(VOCAB, 160, 448, 10, 5, 1),
]


def name(c):
    return f"{c.vocab_size} tokens, {c.num_hidden_layers} x {c.hidden_size}"


def main():
    with tempfile.TemporaryDirectory() as folder:
        if len(sys.argv) < 2:
            subprocess.run(["apt-get", "download", "r-cran-janeaustenr"], cwd=folder, check=True)
        train_text, held_text = load_text(*(sys.argv[1:] or glob.glob(f"{folder}/*.deb")))
    print(f"{torch.cuda.get_device_name()}, seed {SEED}")
    print(f"{len(train_text):,} characters to train on, {len(held_text):,} held out")
    torch.set_float32_matmul_precision("high")

    data = {}  # by vocabulary: tokenizer, tokens, held-out tokens, bits per byte of one nat
    for vocab in {c.vocab_size for c in SHAPES}:
        tok = train_tokenizer(train_text, vocab)
        tokens, held = (tok.encode(text).ids for text in (train_text, held_text))
        held = held[: (len(held) - 1) // CONTEXT * CONTEXT + 1]  # whole windows
        held_bytes = len(tok.decode(held[1:], skip_special_tokens=True).encode())
        per_nat = (len(held) - 1) / held_bytes / math.log(2)
        data[vocab] = tok, torch.tensor(tokens).cuda(), torch.tensor(held).cuda(), per_nat

    runs = []  # (label, config, curve, bits per byte, model)

    def run(label, c, **settings):
        start = time.time()
        _, tokens, held, per_nat = data[c.vocab_size]
        model, curve = train(c, tokens, held, **settings)
        epoch, _, nats = min(curve, key=lambda point: point[2])
        size = sum(p.numel() for p in model.parameters())
        runs.append((label, c, curve, nats * per_nat, model))
        print(
            f"| {label} | {size / 1e6:.2f} M | {nats:.4f} | {nats * per_nat:.4f} "
            f"| {epoch:.1f} | {curve[-1][1]:.3f} | {time.time() - start:.0f} s |",
            flush=True,
        )

    print("| shape | weights | held-out nats/token | bits/byte | at epoch | training loss | time |")
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: |")
    for i, c in enumerate(SHAPES):
        run(name(c), c, epochs=30, dropout=0.2, seed=SEED + i)
    family = [r for r in runs if r[1].vocab_size == VOCAB]
    c = min(family, key=lambda r: r[3])[1]
    run(f"{name(c)}, taught", c, epochs=40, dropout=0.0, teachers=[r[4] for r in family])

    # Ship it: f16, and the numbers and the sample below are those of the file as written.
    tok, _, held, per_nat = data[VOCAB]
    tok.save(f"{HERE}/tokenizer.json", pretty=False)
    weights = {k: v.half().contiguous() for k, v in runs[-1][4].state_dict().items()}
    save_file(weights, f"{HERE}/model.safetensors", metadata={"format": "pt"})
    config = {
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        **asdict(c),
        "hidden_act": "silu",
        "tie_word_embeddings": True,
        "use_sliding_window": False,
        "sliding_window": CONTEXT,
        "max_window_layers": c.num_hidden_layers,
        "attention_dropout": 0.0,
        "bos_token_id": 0,
        "eos_token_id": 0,
        "torch_dtype": "float16",
    }
    with open(f"{HERE}/config.json", "w") as f:
        f.write(json.dumps(config, indent=2) + "\n")

    torch.set_float32_matmul_precision("highest")
    model = Qwen2(c).cuda()
    model.load_state_dict({k: v.float() for k, v in load_file(f"{HERE}/model.safetensors").items()})
    nats = held_out_loss(model, held)
    print(f"model.safetensors: held-out {nats:.4f} nats/token, {nats * per_nat:.4f} bits/byte")
    torch.manual_seed(SEED)
    prompt = tok.encode("As soon as breakfast was over,").ids
    print(tok.decode(sample(model.eval(), prompt, 250)))
    draw(runs, data)


def draw(runs, data):
    fig, axes = plt.subplots(figsize=(9, 5))
    for label, c, curve, _, _ in runs:
        per_nat = data[c.vocab_size][3]
        epochs, trained, held = zip(*curve)
        style = {"color": "black", "lw": 2} if "taught" in label else {}
        axes.plot(epochs, [nats * per_nat for nats in held], label=label, **style)
    # The last run is the one that ships.
    axes.plot(epochs, [nats * per_nat for nats in trained], "k--", label="same, training text")
    axes.set(xlabel="epoch", ylabel="bits per byte", ylim=(1.0, 1.6), title="Held-out loss")
    axes.grid(alpha=0.3)
    axes.legend()
    fig.tight_layout()
    fig.savefig(f"{HERE}/loss.png", dpi=100)


if __name__ == "__main__":
    main()
