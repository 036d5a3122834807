"""Training engines with fastopt.torch in place of torch.optim: the same training, resumed too, clipped, accumulated.

The file stands alone, so that it can be run elsewhere over an installed wheel. Nothing is downloaded.
"""

import copy
import logging
import os
import warnings

import numpy as np
import pytest

os.environ["HF_HUB_OFFLINE"] = "1"  # nor asked for

torch = pytest.importorskip("torch", reason="PyTorch is not installed: pip install torch")

from torch import nn  # noqa: E402
from torch.utils.data import DataLoader, TensorDataset  # noqa: E402

import fastopt.torch as optim  # noqa: E402

EXAMPLES, FEATURES, CLASSES, BATCH = 96, 6, 3, 8
# Both classes round differently, autocast rounds activations to 8 bits, and training spreads what differs.
CLOSE = {"atol": 2e-5, "rtol": 1e-4}
CLOSE_IN_BF16 = {"atol": 2e-2, "rtol": 2e-2}


@pytest.fixture(autouse=True)
def one_thread():
    """Sums in torch's own kernels in the same order each time."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def examples():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(EXAMPLES, FEATURES, generator=generator)
    return x, (x @ torch.randn(FEATURES, CLASSES, generator=generator)).argmax(1)


def loader():
    return DataLoader(TensorDataset(*examples()), batch_size=BATCH)


def network():
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(FEATURES, 16), nn.Tanh(), nn.LayerNorm(16), nn.Linear(16, CLASSES))


def weights(model):
    return torch.cat([p.detach().float().flatten() for p in model.parameters()])


def assert_trained_alike(train, close=CLOSE):
    """`train`, a function of a library of optimizers that returns a model, does with ours what it does with torch's."""
    start, theirs, ours = weights(network()), weights(train(torch.optim)), weights(train(optim))
    if theirs.shape == start.shape:
        assert not torch.allclose(theirs, start, atol=1e-2)
    torch.testing.assert_close(ours, theirs, **close)


# ---- Lightning ----


@pytest.fixture
def lightning():
    module = pytest.importorskip("lightning", reason="Lightning is not installed: pip install lightning")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of workers, loggers and batches that it would rather have
        yield module


def lightning_fit(lightning, library, folder, epochs=2, resume=None, fused=None, **options):
    class Classifier(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.network = network()

        def training_step(self, batch, index):
            return nn.functional.cross_entropy(self.network(batch[0]), batch[1])

        def configure_optimizers(self):
            optimizer = library.AdamW(self.parameters(), lr=0.02, weight_decay=0.1, fused=fused)
            return [optimizer], [torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.8)]

    model = Classifier()
    trainer = lightning.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        default_root_dir=folder,
        **options,
    )
    trainer.fit(model, loader(), ckpt_path=resume)
    return model, trainer


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"gradient_clip_val": 0.1},
        {"gradient_clip_val": 0.02, "gradient_clip_algorithm": "value"},
        {"accumulate_grad_batches": 3},
        {"precision": "bf16-mixed"},
        {"precision": "bf16-mixed", "gradient_clip_val": 0.1},
        {"precision": "bf16-mixed", "gradient_clip_val": 0.1, "accumulate_grad_batches": 2},
        {"precision": "bf16-true", "fused": True},  # as ours, computed in float32
    ],
    ids=str,
)
def test_lightning(lightning, tmp_path, options):
    close = CLOSE if "precision" not in options else CLOSE_IN_BF16
    assert_trained_alike(lambda library: lightning_fit(lightning, library, tmp_path, **options)[0], close)


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
@pytest.mark.parametrize("first", ["fastopt", "torch"])
def test_lightning_resumes(lightning, tmp_path, precision, first):
    """Bit for bit after fastopt's own checkpoint; after torch's, on torch's trajectory."""
    begun = optim if first == "fastopt" else torch.optim
    _, trainer = lightning_fit(lightning, begun, tmp_path, precision=precision)
    trainer.save_checkpoint(tmp_path / "half.ckpt")
    resumed, _ = lightning_fit(lightning, optim, tmp_path, 4, tmp_path / "half.ckpt", precision=precision)
    unbroken, _ = lightning_fit(lightning, begun, tmp_path, 4, precision=precision)
    if first == "fastopt":
        assert torch.equal(weights(resumed), weights(unbroken))
    else:
        close = CLOSE if precision == "32-true" else CLOSE_IN_BF16
        torch.testing.assert_close(weights(resumed), weights(unbroken), **close)


def test_lightning_with_a_manual_step(lightning, tmp_path):
    """`LightningOptimizer` wraps the optimizer's step; closures, `toggle_model` and zero_grad go through."""

    class Manual(lightning.LightningModule):
        def __init__(self, library):
            super().__init__()
            self.automatic_optimization = False
            self.network, self.library = network(), library

        def training_step(self, batch, index):
            optimizer = self.optimizers()
            with optimizer.toggle_model():
                optimizer.zero_grad()
                self.manual_backward(nn.functional.cross_entropy(self.network(batch[0]), batch[1]))
                self.clip_gradients(optimizer, gradient_clip_val=0.5, gradient_clip_algorithm="norm")
                optimizer.step()

        def configure_optimizers(self):
            return self.library.SGD(self.parameters(), lr=0.1, momentum=0.9, nesterov=True)

    def train(library):
        model = Manual(library)
        lightning.Trainer(
            max_epochs=1,
            accelerator="cpu",
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            enable_checkpointing=False,
            default_root_dir=tmp_path,
        ).fit(model, loader())
        return model

    assert_trained_alike(train)


# ---- Hugging Face's Trainer ----


@pytest.fixture
def transformers():
    pytest.importorskip("accelerate", reason="accelerate is not installed: pip install accelerate")
    module = pytest.importorskip("transformers", reason="transformers is not installed: pip install transformers")
    module.logging.set_verbosity_error()
    return module


def language_model(transformers):
    torch.manual_seed(1)
    size = {"vocab_size": 23, "n_positions": 12, "n_embd": 16, "n_layer": 2, "n_head": 2}
    off = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    return transformers.GPT2LMHeadModel(transformers.GPT2Config(**size, **off, bos_token_id=0, eos_token_id=0))


def texts():
    generator = torch.Generator().manual_seed(0)
    tokens = [(torch.arange(12) * step % 23 + torch.randint(0, 2, (12,), generator=generator)) for step in range(48)]
    return [{"input_ids": text.clamp(max=22), "labels": text.clamp(max=22)} for text in tokens]


def trainer_of(transformers, library, folder, how="instance", **options):
    model = language_model(transformers)
    arguments = transformers.TrainingArguments(
        output_dir=str(folder),
        use_cpu=True,
        per_device_train_batch_size=8,
        learning_rate=0.01,
        weight_decay=0.1,
        lr_scheduler_type="cosine",
        report_to=[],
        disable_tqdm=True,
        save_strategy=options.pop("save_strategy", "no"),
        **{"num_train_epochs": 2, "logging_strategy": "no", **options},
    )
    given = {}
    if how == "instance":
        given["optimizers"] = (library.AdamW(model.parameters(), lr=0.01, weight_decay=0.1), None)
    else:
        given["optimizer_cls_and_kwargs"] = (library.AdamW, {"lr": 0.01, "betas": (0.9, 0.99)})
    return transformers.Trainer(model, arguments, train_dataset=texts(), **given)


@pytest.mark.parametrize("how", ["instance", "class"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"max_grad_norm": 0.1, "gradient_accumulation_steps": 2},
        {"bf16": True, "max_grad_norm": 0.1},
        {"label_smoothing_factor": 0.1, "max_grad_norm": 0.0, "warmup_steps": 3},
    ],
    ids=str,
)
def test_trainer(transformers, tmp_path, how, options):
    """With an optimizer, and with a class that it makes one from, in groups with and without decay."""

    def train(library):
        trainer = trainer_of(transformers, library, tmp_path, how, **options)
        trainer.train()
        return trainer.model

    assert_trained_alike(train, CLOSE_IN_BF16 if "bf16" in options else CLOSE)


def test_trainer_resumes(transformers, tmp_path):
    options = {"num_train_epochs": 2, "save_strategy": "epoch"}
    unbroken = trainer_of(transformers, optim, tmp_path, **options)
    unbroken.train()
    resumed = trainer_of(transformers, optim, tmp_path, **options)
    resumed.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{unbroken.state.global_step // 2}"))
    assert resumed.state.global_step == unbroken.state.global_step
    assert torch.equal(weights(resumed.model), weights(unbroken.model))


# ---- accelerate ----


@pytest.fixture
def accelerate():
    module = pytest.importorskip("accelerate", reason="accelerate is not installed: pip install accelerate")
    yield module
    module.state.AcceleratorState._reset_state(True)
    module.state.GradientState._reset_state()


def accelerated(accelerate, library, epochs=2, begin=None, end=None, **options):
    accelerate.state.AcceleratorState._reset_state(True)
    accelerator = accelerate.Accelerator(cpu=True, **options)
    plain = network()
    optimizer = library.AdamW(plain.parameters(), lr=0.02, weight_decay=0.1)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 7, 0.5)
    model, optimizer, batches, schedule = accelerator.prepare(plain, optimizer, loader(), schedule)
    if begin:
        accelerator.load_state(begin)
    for _ in range(epochs):
        for x, y in batches:
            with accelerator.accumulate(model):
                accelerator.backward(nn.functional.cross_entropy(model(x), y))
                if accelerator.sync_gradients:
                    accelerator.clip_grad_norm_(model.parameters(), 0.5)
                optimizer.step()
                schedule.step()
                optimizer.zero_grad()
    if end:
        accelerator.save_state(end)
    return plain


@pytest.mark.parametrize(
    "options",
    [{}, {"gradient_accumulation_steps": 3}, {"mixed_precision": "bf16", "gradient_accumulation_steps": 2}],
    ids=str,
)
def test_accelerate(accelerate, options):
    close = CLOSE_IN_BF16 if "mixed_precision" in options else CLOSE
    assert_trained_alike(lambda library: accelerated(accelerate, library, **options), close)


def test_accelerate_resumes(accelerate, tmp_path):
    accelerated(accelerate, optim, 1, end=str(tmp_path))
    resumed = accelerated(accelerate, optim, 1, begin=str(tmp_path))
    assert torch.equal(weights(resumed), weights(accelerated(accelerate, optim, 2)))


# ---- skorch ----


@pytest.fixture
def skorch():
    return pytest.importorskip("skorch", reason="skorch is not installed: pip install skorch")


def skorch_net(skorch, library, scheduler=True):
    from skorch.callbacks import GradientNormClipping, LRScheduler

    callbacks = [GradientNormClipping(0.5)]
    if scheduler:
        callbacks.append(LRScheduler(torch.optim.lr_scheduler.ExponentialLR, gamma=0.8))
    return skorch.NeuralNetClassifier(
        network,
        criterion=nn.CrossEntropyLoss,
        optimizer=library.AdamW,
        optimizer__weight_decay=0.1,
        optimizer__param_groups=[("0.*", {"lr": 0.01})],
        lr=0.02,
        batch_size=BATCH,
        max_epochs=2,
        train_split=None,
        verbose=0,
        callbacks=callbacks,
    )


def test_skorch(skorch):
    assert_trained_alike(lambda library: skorch_net(skorch, library).fit(*examples()).module_)


def test_skorch_resumes(skorch, tmp_path):
    """From its files, from a pickle, and by `partial_fit`."""
    x, y = examples()
    unbroken = skorch_net(skorch, optim, scheduler=False).fit(x, y)
    copied = copy.deepcopy(unbroken)
    files = {"f_params": tmp_path / "module.pt", "f_optimizer": tmp_path / "optimizer.pt"}
    unbroken.save_params(**files)
    loaded = skorch_net(skorch, optim, scheduler=False).initialize()
    loaded.load_params(**files)
    for net in (unbroken, copied, loaded):
        net.partial_fit(x, y, epochs=1)
    assert torch.equal(weights(copied.module_), weights(unbroken.module_))
    assert torch.equal(weights(loaded.module_), weights(unbroken.module_))


def test_skorch_in_a_grid_search(skorch):
    from sklearn.model_selection import GridSearchCV

    x, y = examples()
    search = GridSearchCV(skorch_net(skorch, optim), {"lr": [0.0, 0.05]}, cv=2, refit=False)
    search.fit(x.numpy(), y.numpy())
    assert not np.isnan(search.cv_results_["mean_test_score"]).any()
    assert search.best_params_ == {"lr": 0.05}


# ---- PyTorch's own table of optimizers ----


def table():
    """By name of class, what PyTorch's own tests say of optimizers: their inputs, their schedulers."""
    pytest.importorskip("expecttest", reason="PyTorch's table of optimizers needs it: pip install expecttest")
    from torch.testing._internal.common_optimizers import optim_db

    return {info.optim_cls.__name__: info for info in optim_db}


SHARED = [name for name in optim.CLASSES if hasattr(torch.optim, name) and name != "SparseAdam"]


def train_with(library, name, kwargs, schedulers=(), steps=12, options=None):
    model = network().double()
    x, y = examples()
    optimizer = getattr(library, name)(model.parameters(), **copy.deepcopy(kwargs))
    schedulers = [make(optimizer) for make in schedulers]

    def closure():
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(x.double()), y)
        loss.backward()
        return loss

    for _ in range(steps):
        loss = optimizer.step(closure)
        for scheduler in schedulers:
            plateau = isinstance(scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau)
            scheduler.step(loss) if plateau else scheduler.step()
    rates = torch.tensor([float(group["lr"]) for group in optimizer.param_groups])
    return torch.cat([weights(model), rates])


@pytest.mark.parametrize("name", SHARED)
def test_torchs_table(name):
    """Every input of the table, with a closure; every set of schedulers with the first of them."""
    info = table()[name]
    inputs = [case.kwargs for case in info.optim_inputs_func(device="cpu")]
    trials = [(kwargs, ()) for kwargs in inputs]
    trials += [({"lr": 0.01}, made) for made in (info.scheduler_inputs or ())]
    for kwargs, schedulers in trials:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of schedulers that step before the optimizer
            theirs, ours = (train_with(library, name, kwargs, schedulers) for library in (torch.optim, optim))
        torch.testing.assert_close(ours, theirs, **CLOSE, msg=lambda text, kwargs=kwargs: f"{kwargs}: {text}")
