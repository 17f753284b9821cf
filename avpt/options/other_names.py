"""What other tools call our options, so that a message about an unknown one can name ours."""

from collections.abc import Mapping, Sequence
from difflib import get_close_matches

from avpt.errors import listed

# what others say -> what we say, of which the first that a command has is meant
OTHER_NAMES: dict[str, tuple[str, ...]] = {
    "--learning-rate": ("--lr",),
    "--base-lr": ("--lr",),
    "--rate": ("--sample-rate", "--lr"),
    "--sr": ("--sample-rate",),
    "--batch": ("--batch-size",),
    "--bs": ("--batch-size",),
    "--bsz": ("--batch-size",),
    "-b": ("--batch-size",),
    "--num-workers": ("--workers",),
    "--jobs": ("--workers",),
    "--threads": ("--workers",),
    "-j": ("--workers",),
    "-w": ("--workers",),
    "--output": ("--out",),
    "--output-dir": ("--out",),
    "--out-dir": ("--out",),
    "--save-dir": ("--out",),
    "--save": ("--out",),
    "-o": ("--out",),
    "--gpu": ("--device",),
    "--gpus": ("--device",),
    "--cuda": ("--device",),
    "--cpu": ("--device",),
    "-e": ("--epochs",),
    "--num-epochs": ("--epochs",),
    "--max-epochs": ("--epochs",),
    "--wd": ("--weight-decay",),
    "--l2": ("--weight-decay",),
    "--scheduler": ("--schedule",),
    "--lr-scheduler": ("--schedule",),
    "--lr-decay": ("--lr-factor", "--schedule"),
    "--gamma": ("--lr-factor",),
    "--warmup": ("--warmup-epochs",),
    "--early-stopping": ("--patience",),
    "--amp": ("--precision",),
    "--fp16": ("--precision",),
    "--bf16": ("--precision",),
    "--half": ("--precision",),
    "--dtype": ("--precision", "--audio-dtype"),
    "--grad-accum": ("--accumulate",),
    "--accum-iter": ("--accumulate",),
    "--gradient-accumulation-steps": ("--accumulate",),
    "--max-grad-norm": ("--clip-grad",),
    "--grad-clip": ("--clip-grad",),
    "--smoothing": ("--label-smoothing",),
    "--resolution": ("--image-size", "--frame-size"),
    "--img-size": ("--image-size", "--frame-size"),
    "--frames": ("--num-frames", "--max-frames"),
    "--frame-rate": ("--fps",),
    "--n-mels": ("--mel-bins",),
    "--backbone": ("--arch",),
    "--model": ("--arch",),
    "--architecture": ("--arch",),
    "--pretrained": ("--weights", "--init"),
    "--checkpoint": ("--init", "--weights"),
    "--duration": ("--segment",),
    "--stride": ("--hop",),
    "--overlap": ("--hop",),
    "--top-k": ("--top",),
    "--topk": ("--top",),
    "-k": ("--top",),
    "--force": ("--overwrite",),
    "-f": ("--overwrite",),
    "--silent": ("--quiet",),
    "--verbose": ("--debug",),
    "-v": ("--debug",),
}
RESUMES = "the same command again goes on where it was interrupted; leave it out"
UNNEEDED = {  # what other tools take and a command here need not
    "--seed": "nothing is random here; leave it out",
    "--resume": RESUMES,
    "--continue": RESUMES,
}


def meant_by(name: str, known: Sequence[str]) -> list[str]:
    """The options of a command that an unknown name may stand for: by meaning, else by spelling."""
    spelled = name.replace("_", "-")
    if spelled in OTHER_NAMES:
        return [ours for ours in OTHER_NAMES[spelled] if ours in known][:1]
    # without dashes, which all have in common
    return [f"--{word}" for word in get_close_matches(spelled.lstrip("-"), [name.lstrip("-") for name in known], n=2)]


def unknown_option(name: str, known: Sequence[str], commands: Mapping[str, Sequence[str]]) -> str:
    """What to say of an option that a command does not have, with the one that is meant, or the commands that have it.

    Args:
        name: as it was typed.
        known: the options of the command.
        commands: those of all commands, by the commands' names.
    """
    says = f"No such option: {name}"
    if name in UNNEEDED:
        return f"{says}; {UNNEEDED[name]}"
    if meant := meant_by(name, known):
        return f"{says}; did you mean {' or '.join(meant)}?"
    spelled = name.replace("_", "-")
    for ours in (spelled, *OTHER_NAMES.get(spelled, ())):
        if having := [command for command, options in commands.items() if ours in options]:
            what = "it" if ours == spelled else f"its like is {ours}, which"
            return f"{says}; {what} is an option of {' and '.join(having) if len(having) < 3 else listed(having, 3)}"
    return says
