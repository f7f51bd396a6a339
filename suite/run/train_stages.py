"""The stages that train the full network: base and learned."""

from __future__ import annotations

from suite import distributed, models, records, weights
from suite.files import sha256
from suite.graph import Graph
from suite.measure.counting import count_params
from suite.progress import Watch
from suite.run import common
from suite.run.folder import Context, finish
from suite.stages import Base, Learned
from suite.train import fit, make_trainer, save_checkpoint, seed_everything


def do_base(stage: Base, context: Context, watch: Watch) -> None:
    """Train the base network, or take public weights, and evaluate it."""
    folder, data = context.folder(stage), common.dataset_of(stage, context)
    seed_everything(stage.seed)
    model = models.build(stage.model, data.classes)
    common.save_weights(model, folder / "init.safetensors")
    seconds = 0.0
    if stage.schedule is None:
        model.load_state_dict(weights.load(stage.weights, context.data))
        model.to(context.device)
    else:
        batches = common.batches_of(stage, stage.schedule, common.stream_seed(stage.seed, common.BASE), context)
        model.to(context.device)
        judge = common.judge_of(stage.schedule, model, stage, context)
        trainer = make_trainer(model, batches, stage.schedule, judge=judge)
        common.save_history(folder, fit(trainer, folder / "train.pt", watch, seed=stage.seed, doing="base"))
        seconds = trainer.seconds
    common.save_weights(model, folder / "final.safetensors")
    watch.report("measuring", share=1.0)
    top1_pct = common.held_out_top1_pct(model, stage, context)
    if not distributed.is_first():
        return
    result = {
        "top1_pct": top1_pct,
        "params": count_params(model),
        "seconds": seconds,
        "base_sha256": sha256(folder / "final.safetensors"),
        "data_sha256": data.checksum,
        "provenance": records.provenance(context.device),
    }
    finish(stage, context, ("init.safetensors", "final.safetensors"), result, None)


def do_learned(stage: Learned, context: Context, watch: Watch) -> None:
    """Train the base network on with the method's hooks; keep the weights and what the learner found."""
    folder, data = context.folder(stage), common.dataset_of(stage.base, context)
    model = common.load_model(stage.base, context, "final" if stage.settings.start == "base" else "init")
    seed_everything(stage.seed)
    learner = stage.settings.learner(model, Graph(model, data.input_shape), common.task_of(stage, context))
    seed = common.stream_seed(stage.seed, common.LEARNED)
    batches = common.batches_of(stage.base, stage.schedule, seed, context)
    judge = common.judge_of(stage.schedule, model, stage.base, context)
    trainer = make_trainer(model, batches, stage.schedule, learner=learner, judge=judge)
    common.save_history(folder, fit(trainer, folder / "train.pt", watch, seed=stage.seed, doing="learning"))
    common.save_weights(model, folder / "final.safetensors")
    save_checkpoint(folder / "state.pt", trainer.learner.state_dict())
    finish(stage, context, ("final.safetensors", "state.pt"), {"seconds": trainer.seconds}, None)
