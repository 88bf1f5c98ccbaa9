"""Golden vectors of TRAK: features and scores of traker, and the matrices that they were made with.

    python -m venv venv && venv/bin/pip install torch==2.13.0 scikit-learn==1.9.1 tqdm
    venv/bin/pip install --no-deps traker==0.3.2
    venv/bin/python tests/golden/make_trak.py

writes trak_projectors.npz and trak_scores.npz beside this file. Matrices are read off by projecting
the identity; those of signs are kept as bits.
"""

import logging
import tempfile
from pathlib import Path

import numpy as np
import torch
from sklearn.datasets import load_digits
from trak import TRAKer
from trak.projectors import BasicProjector, BasicSingleBlockProjector, ChunkedCudaProjector

HERE = Path(__file__).parent
SHAPES = {"conv": (2, 3, 2), "scale": (), "weight": (5, 4), "bias": (4,)}
SIZE = 37


def gradients(batch):
    """Return a batch of gradients as a dictionary that is not in alphabetical order."""
    generator = torch.Generator().manual_seed(batch)
    return {n: torch.randn((batch, *s), generator=generator) for n, s in SHAPES.items()}


def projectors():
    out, batch = {}, 6
    grads = gradients(batch)
    for name, g in grads.items():
        out[f"grads_{name}"] = g.numpy()
    arguments = {"grad_dim": SIZE, "proj_dim": 130, "seed": 3, "device": "cpu"}
    made = {
        "single_normal": BasicSingleBlockProjector(proj_type="normal", **arguments),
        "basic_normal": BasicProjector(proj_type="normal", **arguments),
        "basic_rademacher": BasicProjector(proj_type="rademacher", block_size=100, **arguments),
    }
    for name, projector in made.items():
        for model in (0, 1):
            out[f"{name}_{model}_matrix"] = projector.project(torch.eye(SIZE), model).numpy()
            out[f"{name}_{model}"] = projector.project(grads, model).numpy()
    sizes, arguments = [13, 24], {"proj_dim": 20, "proj_type": "normal", "device": "cpu"}
    parts = [BasicProjector(grad_dim=n, seed=7 + i, **arguments) for i, n in enumerate(sizes)]
    chunked = ChunkedCudaProjector(parts, 25, sizes, batch, "cpu", torch.float32)
    out["chunked"] = chunked.project(grads, 1).numpy()
    for i, (n, part) in enumerate(zip(sizes, parts, strict=True)):
        out[f"chunked_matrix_{i}"] = part.project(torch.eye(n), 1).numpy()
    np.savez_compressed(HERE / "trak_projectors.npz", **out)


def network():
    return torch.nn.Sequential(torch.nn.Linear(64, 32), torch.nn.ReLU(), torch.nn.Linear(32, 10))


def trained(images, labels, seed):
    torch.manual_seed(seed)
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-3)
    for _ in range(30):
        for rows in torch.randperm(len(images)).split(64):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(model(images[rows]), labels[rows]).backward()
            optimizer.step()
    return model


def scores(models, train, target, proj_dim, lambda_reg, seed=0):
    """Return traker's scores and, for every model, its matrix."""
    projector = BasicProjector(2410, proj_dim, seed, "rademacher", "cpu", dtype=torch.float32)
    with tempfile.TemporaryDirectory() as folder:
        traker = TRAKer(
            model=network(), task="image_classification", train_set_size=len(train[0]),
            save_dir=folder, device="cpu", projector=projector, proj_dim=None,
            use_half_precision=False, lambda_reg=lambda_reg, logging_level=logging.ERROR,
        )  # fmt: skip
        for i, model in enumerate(models):
            traker.load_checkpoint(model.state_dict(), model_id=i)
            traker.featurize(train, num_samples=len(train[0]))
        traker.finalize_features()
        for i, model in enumerate(models):
            traker.start_scoring_checkpoint("target", model.state_dict(), i, len(target[0]))
            traker.score(target, num_samples=len(target[0]))
        result = np.array(traker.finalize_scores("target"))
    return result, [projector.project(torch.eye(2410), i).numpy() for i in range(len(models))]


def digits():
    images, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(images))[:450]
    pixels, labels = images[order].astype(np.uint8), labels[order]
    images, names = torch.tensor(pixels / 16, dtype=torch.float32), torch.tensor(labels)
    train, target = (images[:400], names[:400]), (images[400:], names[400:])
    models = [trained(*train, seed) for seed in (0, 1)]
    out = {"pixels": pixels, "labels": labels.astype(np.uint8)}
    for i, model in enumerate(models):
        for name, value in model.state_dict().items():
            out[f"model{i}_{name}"] = value.numpy()
    out["scores_64"], matrices = scores(models, train, target, 64, 0.0)
    for i, matrix in enumerate(matrices):
        out[f"signs_{i}"] = np.packbits(matrix > 0, axis=1)
    out["scores_1024"], _ = scores(models, train, target, 1024, REGULARISATION)
    other, _ = scores(models, train, target, 1024, REGULARISATION, seed=50)
    from scipy.stats import spearmanr

    same = [spearmanr(a, b)[0] for a, b in zip(out["scores_1024"].T, other.T, strict=True)]
    print(f"traker with another seed, k = 1024: Spearman {np.mean(same):.3f}")
    np.savez_compressed(HERE / "trak_scores.npz", regularisation=REGULARISATION, **out)


# Of two draws of the matrix only the leading part of F^T F, with eigenvalues up to 6000, agrees.
REGULARISATION = 3000.0

if __name__ == "__main__":
    projectors()
    digits()
