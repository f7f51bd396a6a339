"""The stages that train the full network: base and learned."""

from __future__ import annotations

from suite import distributed, models, records, weights
from suite import pack as packing
from suite.files import sha256
from suite.graph import Graph
from suite.measure.counting import count_params
from suite.run.workspace import BASE, LEARNED, Workspace
from suite.stages import Base, Learned
from suite.train import save_checkpoint, seed_everything
from suite.trainer import make_trainer


def do_base(work: Workspace[Base]) -> None:
    """Train the base network, or load public weights, and evaluate it."""
    stage, folder, device = work.stage, work.folder, work.context.device
    seed_everything(stage.seed)
    model = models.build(stage.model, work.dataset.classes)
    work.save_weights(model, "init.safetensors")
    seconds = 0.0
    if stage.schedule is None:
        if weights.own_file(stage.weights) and weights.digest(stage.weights) != stage.identity["weights"]:
            raise ValueError(f"{stage.weights} has changed since this stage was planned; launch the grid again")
        weights.load_into(model, stage.weights, work.context.data)
        model.to(device)
    else:
        batches = work.batches(stage.schedule, BASE)
        graph = Graph(model, work.dataset.input_shape)
        if graph.classes < work.dataset.classes:
            raise ValueError(
                f"{stage.model} gives {graph.classes} logits, but {stage.data} has {work.dataset.classes} classes; a builder of "
                "MODELS takes the number of classes"
            )
        packing.check_dense(model, graph)
        graph.check_gradient()
        model.to(device)
        trainer = make_trainer(model, batches, stage.schedule, judge=work.judge(stage.schedule, model))
        work.save_history(work.fit(trainer, "train.pt", seed=stage.seed, doing="base"))
        seconds = trainer.seconds
    work.save_weights(model, "final.safetensors")
    work.watch.report("measuring", share=1.0)
    top1_pct = work.held_out_top1_pct(model)
    skipped = work.skipped()
    if not distributed.is_first():
        return
    result = {
        "top1_pct": top1_pct,
        "classes": work.dataset.classes,
        "params": count_params(model),
        "seconds": seconds,
        "skipped": skipped,
        "base_sha256": sha256(folder / "final.safetensors"),
        "data_sha256": work.dataset.checksum,
        "provenance": records.provenance(device),
    }
    work.finish(("init.safetensors", "final.safetensors"), result)


def do_learned(work: Workspace[Learned]) -> None:
    """Train the base network further with the method's hooks; write weights and the learner's state."""
    stage, folder = work.stage, work.folder
    model = work.model("final" if stage.settings.start == "base" else "init")
    seed_everything(stage.seed)
    graph = Graph(model, work.dataset.input_shape)
    packing.check_dense(model, graph)
    graph.check_gradient()
    work.add_layer_times(model, graph)
    learner = stage.settings.learner(model, graph, work.task())
    batches = work.batches(stage.schedule, LEARNED)
    trainer = make_trainer(model, batches, stage.schedule, learner=learner, judge=work.judge(stage.schedule, model))
    work.save_history(work.fit(trainer, "train.pt", seed=stage.seed, doing="learning"))
    trainer.learner.finish(model)
    work.save_weights(model, "final.safetensors")
    save_checkpoint(folder / "state.pt", trainer.learner.state_dict())
    result = {
        "seconds": trainer.seconds,
        "classes": work.dataset.classes,
        "skipped": work.skipped(),
        "provenance": records.provenance(work.context.device),
    }
    work.finish(("final.safetensors", "state.pt"), result)
