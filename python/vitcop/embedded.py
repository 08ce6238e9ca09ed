"""A LLaVA with LLaVA-1.5's true geometry and seeded random weights, made in code without any download.

The weights are random, so answers are meaningless. As in LLaVA-1.5: the classes of transformers, CLIP's
preprocessing, 336 px in patches of 14 (24 x 24 patches and [CLS]), the penultimate CLIP layer without its [CLS] as
visual tokens, the MLP projector, a Llama decoder of 32 layers with multi-head attention, the prompt format.
Different: the widths (64 and 128 instead of 1024 and 4096), the number of CLIP layers (12 instead of 24), the
vocabulary and the weights.

The weights are drawn so that tokens differ as they do in a trained model; the usual N(0, 0.02) makes all 576 nearly
equal:
- Patch filters and position embeddings have a 1/f spectrum, as trained ones do: a patch is told by its colour and
  coarse shading, and neighbours have similar positions.
- Linear layers keep the variance of their input (gain/sqrt(fan in)); what is added to a residual stream is divided by
  sqrt(2 layers).
- The key projection of CLIP is scaled by `KEY_GAIN` so that keys of the shipped photograph lie about 17 apart (median;
  1 to 40). ViTCoP's cutoff distance d_c = 8 was tuned on keys of CLIP at width 1024, which lie about 10 to 40 apart.
Nothing depends on the photograph or on a method: every weight comes from `seed` and its own name alone. Of the seeds 0,
1 and 2, the default is the one whose picture of the shipped photograph is easiest to read.
"""

import math
import zlib
from typing import Any

import torch
from torch import Tensor

LABEL = "random weights, meaningless answer"
NAME = "embedded LLaVA (LLaVA-1.5's geometry, narrow, random weights)"
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ message['role'].upper() }}: "
    "{% for part in message['content'] if part['type'] == 'image' %}<image>\n{% endfor %}"
    "{% for part in message['content'] if part['type'] == 'text' %}{{ part['text'] }} {% endfor %}"
    "{% endfor %}{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)

IMAGE_SIZE, PATCH_SIZE = 336, 14
SEED = 2
KEY_GAIN = 2.5
POSITION_STD = 0.5

WORDS = tuple(
    """
a about above across after again air all also always an and animal another any are around as ask at away back be because
been before began below between big bird black blue boat body book both bottom box boy bread bridge bright brown
building but by call came can car cat chair child city clear close cloud coffee cold colour come corner could country
cup dark day did different do dog door down draw each early earth eat edge empty end even ever every eye face far feet
few field find fire first fish five flower food for form found four from front full garden gave get girl give glass go
gold good grass great green ground group grow had half hand hard has have he head hear heard help her here high hill him
his hold home horse hot hour house how hundred I if image in inside into is island it its just keep kind know lamp land
large last late leaf learn leave left letter light like line little live long look made main make man many map may me
mean men might mile milk more most mother mountain move much must my name near never new next night no north not now
number object of off often old on once one only open or orange other our out over own page paper part people photo
picture piece place plant plate play point put question quick rain read real red right river road rock room round run
same saucer saw say sea see seem set shadow shape she ship short should show side sky slow small snow so some song soon
south spoon stand star start still stone stop street such sun table take talk tall tell than that the their them then
there these they thing think this those thought three through time to together too top toward tree turn two under until
up us use very view walk wall want warm was watch water way we well went were what wheel when where which while white
who why will wind window with without wood word work world would write year yellow yes you young your
""".split()  # noqa: SIM905
)


def build_model(seed: int = SEED) -> Any:
    """The embedded `LlavaForConditionalGeneration`, on the CPU in float32 and in evaluation mode.

    The same seed gives the same weights with every version of transformers and torch; the global generators of torch
    are left as they were.
    """
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

    tokenizer = build_tokenizer()
    vision = CLIPVisionConfig(
        hidden_size=64,
        intermediate_size=256,
        num_hidden_layers=12,
        num_attention_heads=4,
        image_size=IMAGE_SIZE,
        patch_size=PATCH_SIZE,
        projection_dim=64,
    )
    text = LlamaConfig(
        hidden_size=128,
        intermediate_size=344,
        num_hidden_layers=32,
        num_attention_heads=4,
        num_key_value_heads=4,
        vocab_size=len(tokenizer),
        max_position_embeddings=4096,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        tie_word_embeddings=False,
    )
    config = LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        image_seq_length=(IMAGE_SIZE // PATCH_SIZE) ** 2,
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
        tie_word_embeddings=False,
    )
    with torch.random.fork_rng(devices=[]):
        model = LlavaForConditionalGeneration(config)
    depths = {"vision": vision.num_hidden_layers, "text": text.num_hidden_layers}
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            _fill(parameter, name, seed, depths)
    generation = model.generation_config
    generation.pad_token_id = tokenizer.pad_token_id
    generation.eos_token_id = None  # noise never ends by itself
    whole_words = {f"▁{word}" for word in WORDS}
    generation.suppress_tokens = [i for token, i in tokenizer.get_vocab().items() if token not in whole_words]
    return model.eval()


def _fill(parameter: Tensor, name: str, seed: int, depths: dict[str, int]) -> None:
    """Draw one parameter from a generator seeded by `seed` and the parameter's name."""
    name = name.replace("vision_model.", "").removeprefix("model.").replace("language_model.model.", "language_model.")
    *_, module, kind = f".{name}".split(".")
    if kind == "bias" or "norm" in module:
        parameter.fill_(1.0 if kind == "weight" else 0.0)
        return
    generator = torch.Generator().manual_seed(seed + zlib.crc32(name.encode()))
    drawn = torch.randn(parameter.shape, generator=generator, dtype=torch.float32, device="cpu")
    if module == "patch_embedding":
        drawn = _pink(drawn) / math.sqrt(drawn[0].numel())
    elif module == "position_embedding":
        grid = drawn[1:].T.reshape(-1, IMAGE_SIZE // PATCH_SIZE, IMAGE_SIZE // PATCH_SIZE)
        drawn[1:] = POSITION_STD * _pink(grid).flatten(1).T
    elif module != "embed_tokens" and kind != "class_embedding":
        drawn = drawn / math.sqrt(parameter.shape[-1])
    if module in ("out_proj", "fc2", "o_proj", "down_proj"):
        drawn = drawn / math.sqrt(2 * depths["vision" if name.startswith("vision") else "text"])
    if module == "k_proj" and name.startswith("vision"):
        drawn = KEY_GAIN * drawn
    parameter.copy_(drawn)


def _pink(filters: Tensor) -> Tensor:
    """Random filters [O, I, h, w] with amplitudes falling as 1/f, of unit variance."""
    height, width = filters.shape[-2:]
    rows = torch.fft.fftfreq(height)[:, None] * height
    columns = torch.fft.rfftfreq(width)[None] * width
    amplitude = 1 / (1 + rows.square() + columns.square()).sqrt()
    shaped = torch.fft.irfft2(torch.fft.rfft2(filters) * amplitude, s=(height, width))
    return shaped / shaped.std()


def build_tokenizer() -> Any:
    """A tokenizer of Llama's kind made in code: whole words with byte fallback, so every prompt can be encoded."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    special = ["<unk>", "<s>", "</s>", "<pad>", "<image>"]
    bytes_ = [f"<0x{byte:02X}>" for byte in range(256)]
    characters = [chr(code) for code in range(33, 127)]
    words = sorted({form for word in WORDS for form in (word, word.capitalize())} | {"USER", "ASSISTANT"})
    scores = (
        [(token, 0.0) for token in special]
        + [(token, -20.0) for token in bytes_]
        + [("▁", -5.0)]
        + [(character, -8.0) for character in characters]
        + [(f"▁{word}", -6.0) for word in words]
        + [(word, -7.0) for word in words if len(word) > 1]
    )
    tokenizer = Tokenizer(models.Unigram(scores, unk_id=0, byte_fallback=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="first")
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", special.index("<s>"))]
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        padding_side="left",
        model_max_length=4096,
        model_input_names=["input_ids", "attention_mask"],
    )
    fast.add_tokens([AddedToken("<image>", special=True, normalized=False)], special_tokens=True)
    return fast


def build_processor() -> Any:
    """LLaVA's processor: CLIP's own preprocessing (PIL and numpy, without torchvision) and the embedded tokenizer."""
    import transformers
    from transformers import LlavaProcessor

    # 5.x keeps the PIL one under its own name, 4.x has no other.
    clip = getattr(transformers, "CLIPImageProcessorPil", None) or transformers.CLIPImageProcessor
    return LlavaProcessor(
        image_processor=clip(size={"shortest_edge": IMAGE_SIZE}, crop_size={"height": IMAGE_SIZE, "width": IMAGE_SIZE}),
        tokenizer=build_tokenizer(),
        patch_size=PATCH_SIZE,
        vision_feature_select_strategy="default",
        chat_template=CHAT_TEMPLATE,
        num_additional_image_tokens=1,
    )
