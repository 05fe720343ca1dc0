"""CIFAR-10 classifiers: data in, calibrated probabilities out."""


def __getattr__(name: str):
    # Deferred, so that a process which needs one module (a decode worker, say) does not import torch.
    if name == "load_predictor":
        from classifier.models.predictor import load_predictor

        return load_predictor
    raise AttributeError(f"module 'classifier' has no attribute {name!r}")
