"""What a run leaves on disk: the generator for sampling, and checkpoints to go on from.

``generator.safetensors`` alone is all that sampling needs (``generators``), the folders below
``checkpoints/`` are what training needs to go on (``trainings``), and ``runs`` finds both. Nothing
here is ever read in a way that could run code, and nothing is allocated before the headers of the
files were compared with what they say of themselves (``tensors``). Every file or folder appears
under its name when it is whole.
"""

from ecgan.checkpoint.generators import (
    BEST,
    GENERATOR,
    GeneratorFile,
    GeneratorMetadata,
    InheritedTraining,
    build_generator,
    build_style_encoder,
    inheritance,
    load_generator,
    read_metadata,
    save_generator,
)
from ecgan.checkpoint.runs import (
    is_written,
    newest_run,
    refuse_another_recipe,
    refuse_links,
    resolve_generator,
)
from ecgan.checkpoint.tensors import refuse_misfits
from ecgan.checkpoint.trainings import (
    FORMAT,
    DamagedError,
    Training,
    TrainingRecord,
    load_training,
    newest_training,
    prune,
    save_training,
    training_checkpoints,
)

__all__ = [
    "BEST",
    "FORMAT",
    "GENERATOR",
    "DamagedError",
    "GeneratorFile",
    "GeneratorMetadata",
    "InheritedTraining",
    "Training",
    "TrainingRecord",
    "build_generator",
    "build_style_encoder",
    "inheritance",
    "is_written",
    "load_generator",
    "load_training",
    "newest_run",
    "newest_training",
    "prune",
    "read_metadata",
    "refuse_another_recipe",
    "refuse_links",
    "refuse_misfits",
    "resolve_generator",
    "save_generator",
    "save_training",
    "training_checkpoints",
]
