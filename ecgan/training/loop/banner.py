"""What a training says before its first step."""

from ecgan.data.loader import share_of_photos
from ecgan.recipe import Recipe
from ecgan.runtime import distributed
from ecgan.runtime.timing import counted, duration
from ecgan.training.log import RATE_STEPS
from ecgan.training.loop import speed
from ecgan.training.loop.state import TrainingState
from ecgan.training.networks import Frozen

MANY_EPOCHS = 1000  # beyond which a training is remarked upon


def banner(state: TrainingState) -> str:
    """Data, classes, device, size and length of a training, in a few lines."""
    job, data, train = state.job, state.job.recipe.data, state.job.recipe.train
    world = distributed.world_size()
    networks = [one.network for one in state.trained.by_name.values()]
    count = sum(p.numel() for network in networks for p in network.parameters())
    pairs, held_out = len(job.train_set), len(job.validation_set)
    alone = len(job.unlabelled)
    left = train.images - state.progress.images_seen
    share = float(100 * share_of_photos(pairs, alone))
    lines = [
        f"training {job.recipe.name} on {job.device}{f', {world} ranks' if world > 1 else ''}, "
        f"into {job.out}",
        f"  data: {data.root}, {counted(pairs, 'pair')} of {data.split}, {held_out:,} of val; "
        f"{counted(job.space.num_classes, 'class', 'classes')}; "
        f"{data.height} x {data.width} pixels",
        f"  {count / 1e6:.2f} M parameters; {counted(train.images, 'image')} in steps of "
        f"{train.batch}, "
        f"{epochs(train.images, pairs, alone)}",
    ]
    if left > train.batch * RATE_STEPS and not job.quiet and distributed.is_first():
        lines.append(f"  {_time(state, count, left)}; it is measured in the first steps")
    if alone:
        more = f"and {counted(alone, 'photo')} without label maps, {share:.0f} % of the images"
        lines.insert(2, f"  {more}: {data.unlabelled}")
    return "\n".join(lines)


def _time(state: TrainingState, weights: int, images: int) -> str:
    job, terms = state.job, state.objective
    frozen = Frozen(
        terms.perceptual_network, terms.feature_network, terms.label_generator, state.hed
    )
    world = distributed.world_size()
    return speed.told(
        job.recipe,
        job.space,
        frozen,
        images=images,
        weights=weights,
        device=job.device,
        world=world,
    )


def time_left(recipe: Recipe, images_seen: int, rate: float) -> str:
    """The measured speed and the time to the end, and what is not in it.

    Args:
        recipe: the resolved recipe.
        images_seen: length of the training so far.
        rate: images per second of the first steps.
    """
    left = recipe.train.images - images_seen
    text = (
        f"measured: {rate:.3g} images/s, about {duration(left / rate)} for the "
        f"{counted(left, 'image')} left"
    )
    evaluate = recipe.evaluate
    if not recipe.train.evaluate_every:
        return text
    scores = left // recipe.train.evaluate_every
    judge = ""
    if evaluate.judge == "train":
        judge = f", and of the judge on {counted(evaluate.judge_training.images, 'image')}"
    return f"{text}; without the time of {counted(scores, 'score')}{judge}"


def epochs(images: int, pairs: int, alone: int = 0) -> str:
    """``12.5 epochs``, with a remark where there are thousands.

    Args:
        images: length of the training.
        pairs: number of pairs.
        alone: number of photos without label maps, which take their share of the images.
    """
    number = float(images * (1 - share_of_photos(pairs, alone))) / pairs
    text = f"{number:,.1f} epochs{' of the pairs' if alone else ''}"
    if number < MANY_EPOCHS:
        return text
    return f"{text}: each pair is seen so often that it may be learnt by heart; lower train.images"
