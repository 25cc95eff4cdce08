"""Layers that, as torchvision's MNASNet, load nothing without the version of a state dict."""


class Versioned:
    """Put before a layer's class: `class Linear2(Versioned, nn.Linear)`."""

    _version = 2

    def _load_from_state_dict(self, state, prefix, metadata, *rest):
        if metadata.get("version") != 2:
            raise ValueError("version should be 2")
        super()._load_from_state_dict(state, prefix, metadata, *rest)
