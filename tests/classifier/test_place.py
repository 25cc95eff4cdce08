"""The positions of a grid must lie as the image's do."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import nn
from torch.nn import functional

from sigcam.classifier.dual_branch import DualBranch
from sigcam.core.errors import ModelError


class Tokens(nn.Module):
    """Patches as tokens in a given order, put back in order before the norm."""

    def __init__(self, order):
        super().__init__()
        self.patches = nn.Conv2d(3, 8, 4, stride=4)
        self.early = nn.LayerNorm(8)
        self.late = nn.LayerNorm(8)
        self.fc = nn.Linear(8, 5)
        self.register_buffer("order", order)
        self.register_buffer("back", order.argsort())

    def forward(self, x):
        tokens = self.patches(x).flatten(2).transpose(1, 2)
        return self.fc(self.late(self.early(tokens[:, self.order])[:, self.back]).mean(1))


def windows(side, window):
    """The order that keeps the tokens of a window together."""
    index = torch.arange(side * side).reshape(side // window, window, side // window, window)
    return index.permute(0, 2, 1, 3).flatten()


@pytest.mark.parametrize("order", [windows(6, 3), torch.arange(36).reshape(6, 6).T.flatten()])
def test_tokens_in_another_order_are_refused(order):
    dual = DualBranch(Tokens(order), input_size=24)
    assert (dual.branch.layer, dual.branch.layout.kind) == ("late", "tokens")
    with pytest.raises(ModelError, match=r"'early' must lie as the image's do"):
        DualBranch(Tokens(order), input_size=24, target_layers=["early"])
    with pytest.raises(ModelError, match=r"'early' must lie as the image's do"):
        DualBranch(Tokens(order), "early", input_size=24)


@pytest.mark.slow
def test_the_image_s_order_passes_everywhere():
    plain = Tokens(torch.arange(36))
    assert DualBranch(plain, input_size=24, target_layers=["early"]).targets[0].layer == "early"


def test_a_network_that_ignores_the_image_passes():
    silent = Tokens(windows(6, 3))
    nn.init.zeros_(silent.patches.weight)
    dual = DualBranch(silent, input_size=24, target_layers=["early"])
    assert dual.targets[0].layer == "early"


class Moved(nn.Module):
    """A small convolutional network that moves its images or its features first."""

    def __init__(self, images=None, features=None, seed=0):
        super().__init__()
        torch.manual_seed(seed)
        self.images, self.features = images, features
        self.body = nn.Sequential(
            nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, 2, 1)
        )
        self.last = nn.Identity()
        self.fc = nn.Linear(8, 5)

    def forward(self, x):
        x = self.body(x if self.images is None else self.images(x))
        x = x if self.features is None else self.features(x)
        return self.fc((x + 0.0).mean((2, 3)))


MOVES = {
    "flipped left to right": lambda x: x.flip(-1),
    "flipped upside down": lambda x: x.flip(2),
    "turned by 180 degrees": lambda x: x.flip((2, 3)),
    "turned by 90 degrees": lambda x: torch.rot90(x, 1, (2, 3)),
    "turned by 270 degrees": lambda x: torch.rot90(x, 3, (2, 3)),
    "transposed;": lambda x: x.transpose(2, 3),
    "transposed along the other": lambda x: x.transpose(2, 3).flip((2, 3)),
    "rolled by about .* columns": lambda x: torch.roll(x, x.shape[3] // 2, 3),
    "rolled by about .* rows": lambda x: torch.roll(x, x.shape[2] // 4, 2),
    "padded": lambda x: functional.pad(x, (x.shape[3] // 4,) * 4),
    "cropped": lambda x: x[:, :, 6:-6, 6:-6] if x.shape[3] > 12 else x[:, :, 2:-2, 2:-2],
}


@pytest.mark.slow
@pytest.mark.parametrize("place", ["images", "features"])
@pytest.mark.parametrize("seen", MOVES)
def test_a_forward_that_moves_the_positions_is_refused(seen, place):
    for seed in range(2):
        with pytest.raises(ModelError, match=seen):
            DualBranch(Moved(**{place: MOVES[seen]}, seed=seed), input_size=32)


def one_row(x):
    """The largest of each column: at which row that is, is chance."""
    return functional.max_pool2d(x, (x.shape[2], 1))


def one_column(x):
    return functional.max_pool2d(x, (1, x.shape[3]))


@pytest.mark.parametrize("seed", [0, 1])
def test_grids_of_one_row_or_column_pass(seed):
    DualBranch(Moved(features=one_row, seed=seed), input_size=(48, 64))
    DualBranch(Moved(features=one_column, seed=seed), input_size=(64, 48))


@pytest.mark.parametrize(
    ("move", "seen"),
    [("flipped left to right", "flipped left to right"), ("rolled by about .* columns", "mixed")],
)
def test_grids_of_one_row_that_are_moved_are_refused(move, seen):
    model = Moved(features=lambda x: MOVES[move](one_row(x)))
    with pytest.raises(ModelError, match=seen):
        DualBranch(model, input_size=(48, 64))


def test_a_column_laid_as_a_row_is_refused():
    model = Moved(features=lambda x: one_column(x).transpose(2, 3))
    with pytest.raises(ModelError, match="transposed"):
        DualBranch(model, input_size=(64, 48))


@pytest.mark.slow
def test_a_small_crop_is_seen():
    with pytest.raises(ModelError, match="rows 2 to 29 of 32 and the columns 2 to 29 of 32"):
        DualBranch(Moved(lambda x: x[:, :, 2:-2, 2:-2]), input_size=32)


def test_a_crop_on_one_side_is_called_a_crop():
    with pytest.raises(ModelError, match=r"rows 0 to 23 of 32 .*cropped"):
        DualBranch(Moved(lambda x: x[:, :, :24, :24]), input_size=32)


def unpadded(depth, kernel=3):
    layers = [nn.Conv2d(3 if i == 0 else 8, 8, kernel) for i in range(depth)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5))


@pytest.mark.parametrize(("depth", "kernel", "size"), [(2, 3, 16), (4, 3, 32), (2, 5, 28)])
def test_kernels_without_padding_pass(depth, kernel, size):
    torch.manual_seed(0)
    dual = DualBranch(unpadded(depth, kernel), input_size=size)
    assert dual.branch.layer == str(depth - 1)
    cropped = nn.Sequential(Cropped(), unpadded(depth, kernel))
    with pytest.raises(ModelError, match="cropped"):
        DualBranch(cropped, input_size=size)


class Cropped(nn.Module):
    def forward(self, x):
        return x[:, :, 2:-2, 2:-2]


SPECTRA = {
    "real and imaginary": lambda x: torch.view_as_real(torch.fft.fft2(x))[..., 0],
    "amplitudes": lambda x: torch.fft.fftshift(torch.fft.fft2(x).abs(), (2, 3)),
    "logarithm": lambda x: torch.log1p(torch.fft.fftn(x, dim=(2, 3)).abs()),
    "one axis after the other": lambda x: torch.fft.fft(torch.fft.fft(x), dim=2).real,
}


@pytest.mark.parametrize("case", SPECTRA)
def test_a_network_of_spectra_is_refused(case):
    with pytest.raises(ModelError, match="they are frequencies"):
        DualBranch(Moved(SPECTRA[case]), input_size=32)


BACK = {
    "both ways": lambda x: torch.fft.irfft2(torch.fft.rfft2(x) * 0.5, s=x.shape[2:]),
    "in two steps": lambda x: torch.fft.ifft2(torch.fft.fft(torch.fft.fft(x), dim=2)).real,
    "mixed and added": lambda x: x + torch.fft.fft2(x, norm="ortho").real * 0.1,
    "gated": lambda x: x * torch.fft.fft2(x).abs().mean((2, 3), keepdim=True).sigmoid(),
}


@pytest.mark.parametrize("place", ["images", "features"])
@pytest.mark.parametrize("case", BACK)
def test_a_transform_there_and_back_passes(case, place):
    DualBranch(Moved(**{place: BACK[case]}), input_size=32)


def test_images_cast_to_bytes_are_looked_at():
    with pytest.raises(ModelError, match="flipped left to right"):
        DualBranch(Moved(lambda x: x.to(torch.uint8).float().flip(3) / 255), input_size=32)
    DualBranch(Moved(lambda x: x.to(torch.uint8).float() / 255), input_size=32)


def test_weights_that_are_not_finite_are_no_matter_of_the_place():
    model = Moved()
    model.body[1].running_var[0] = float("nan")
    with pytest.raises(ModelError, match=r"not finite: body\.1\.running_var"):
        DualBranch(model, input_size=32).check_finite(sigmoid=False)


def test_moving_there_and_back_passes():
    model = Moved(lambda x: x.flip(3), lambda x: x.flip(3))
    assert DualBranch(model, input_size=32).branch.layout.shape == (8, 8, 8)


@pytest.mark.slow
@pytest.mark.parametrize("size", [33, 64, 100])
@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_small", "squeezenet1_1"])
def test_ordinary_networks_pass(name, size):
    models = pytest.importorskip("torchvision").models
    torch.manual_seed(size)
    DualBranch(models.get_model(name, weights=None), input_size=max(size, 40))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "size"), [("levit_128s", 224), ("mixer_s32_224", 224), ("vit_tiny_patch16_224", 224)]
)
def test_transformers_and_mixers_pass(name, size):
    timm = pytest.importorskip("timm")
    torch.manual_seed(1)
    DualBranch(timm.create_model(name, pretrained=False), input_size=size)


class Twice(nn.Module):
    """Test-time augmentation: the mean of the logits of an image and of its mirror image."""

    def __init__(self, order=lambda x: (x, x.flip(-1))):
        super().__init__()
        torch.manual_seed(0)
        self.order = order
        self.conv = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 8, 3, 2, 1))
        self.fc = nn.Linear(8, 5)

    def forward(self, x):
        return sum(self.fc(self.conv(one).mean((2, 3))) for one in self.order(x)) / 2


@pytest.mark.parametrize("layer", ["conv", "conv#2", "conv.2:conv2d"])
def test_a_flipped_run_names_the_one_that_is_not(layer):
    with pytest.raises(ModelError, match=r"flipped left to right.* runs 2 times.*#1'") as got:
        DualBranch(Twice(), input_size=32, target_layers=[layer])
    named = str(got.value).rpartition("its run '")[2].partition("'")[0]
    assert named == f"{layer.removesuffix('#2')}#1"
    assert DualBranch(Twice(), input_size=32, target_layers=[named]).targets[0].layer == named


def test_the_last_run_needs_no_number_where_the_first_is_flipped():
    model = Twice(lambda x: (x.flip(-1), x))
    assert DualBranch(model, input_size=32, target_layers=["conv"]).targets[0].layer == "conv"
    with pytest.raises(ModelError, match="its run 'conv#2'"):
        DualBranch(model, input_size=32, target_layers=["conv#1"])


def test_no_run_is_advised_where_all_are_flipped():
    model = Twice(lambda x: (x.flip(2), x.flip(3)))
    with pytest.raises(ModelError, match=r"or name a layer before it$"):
        DualBranch(model, input_size=32, target_layers=["conv"])


def test_layers_that_are_proposed_lie_as_the_image_does():
    with pytest.raises(ModelError, match="such as conv#1: their maps"):
        DualBranch(Twice(), input_size=32)


class Attending(nn.Module):
    """Tokens of the image behind layers of sharp attention: many look at one other token."""

    def __init__(self, seed, stride=1, fused=False, window=0):
        super().__init__()
        torch.manual_seed(seed)
        self.stride, self.fused, self.window = stride, fused, window
        self.patches = nn.Conv2d(3, 16, 4, stride=4)
        self.norm = nn.LayerNorm(16, elementwise_affine=False)
        self.parts = nn.ModuleList(nn.Linear(16, 48) for _ in range(3))
        self.last = nn.LayerNorm(16)
        self.fc = nn.Linear(16, 5)

    def attended(self, part, tokens):
        q, k, v = part(self.norm(tokens)).mul(3).split(16, 2)
        k, v = k[:, :: self.stride], v[:, :: self.stride]
        if self.fused:
            heads = (one[:, None] for one in (q, k, v))
            return functional.scaled_dot_product_attention(*heads)[:, 0]
        return (q @ k.transpose(1, 2)).softmax(-1) @ v

    def forward(self, x):
        tokens = self.patches(x).flatten(2).transpose(1, 2)
        if self.window:  # as Hiera's: kept together, and never put back
            tokens = tokens[:, windows(8, self.window)]
        for part in self.parts:
            tokens = tokens + self.norm(self.attended(part, tokens))
        return self.fc(self.last(tokens).mean(1))


@pytest.mark.slow
@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("stride", [1, 4])
def test_sharp_attention_is_no_other_order(stride, fused):
    for seed in range(3):
        dual = DualBranch(Attending(seed, stride, fused), input_size=32)
        assert dual.targets[0].layout.shape == (16, 8, 8)


@pytest.mark.slow
@pytest.mark.parametrize("fused", [False, True])
def test_windows_behind_sharp_attention_are_refused(fused):
    for stride in (1, 4):
        with pytest.raises(ModelError, match="another order"):
            DualBranch(Attending(0, stride, fused, window=4), input_size=32)


class Pyramid(nn.Module):
    """A narrow network with five strides, whose last grid has four cells of noisy places."""

    def __init__(self, seed, kernel=3, move=None):
        super().__init__()
        torch.manual_seed(seed)
        widths = (3, 8, 8, 16, 16, 24)
        self.move = move
        self.body = nn.Sequential()
        for before, after in itertools.pairwise(widths):
            self.body.append(nn.Conv2d(before, after, kernel, 2, kernel // 2))
            self.body.append(nn.Conv2d(after, after, 3, 1, 1, groups=after))
            self.body.append(nn.ReLU6())
        self.fc = nn.Linear(24, 5)

    def forward(self, x):
        x = self.body(x)
        return self.fc(((x if self.move is None else self.move(x)) + 0.0).mean((2, 3)))


@pytest.mark.slow
@pytest.mark.parametrize("kernel", [3, 5])
def test_four_cells_of_a_narrow_network_pass(kernel):
    for seed in range(6):
        assert DualBranch(Pyramid(seed, kernel), input_size=64).targets[0].layout.shape[1:] == (
            2,
            2,
        )


@pytest.mark.slow
@pytest.mark.parametrize("seen", ["flipped left to right", "transposed;", "turned by 90 degrees"])
def test_four_cells_that_are_moved_are_refused(seen):
    for seed in range(3):
        with pytest.raises(ModelError, match=f"{seen}|another order"):
            DualBranch(Pyramid(seed, move=MOVES[seen]), input_size=64)


class Pooled(nn.Module):
    """Tokens in windows that are pooled by their maximum, and by attention, as in Hiera."""

    def __init__(self, order):
        super().__init__()
        torch.manual_seed(0)
        self.patches, self.late = nn.Conv2d(3, 8, 4, stride=4), nn.LayerNorm(8)
        self.queries, self.keys, self.fc = (nn.Linear(8, 8) for _ in range(3))
        self.middle, self.last = nn.LayerNorm(8), nn.Linear(8, 5)
        self.register_buffer("order", order)

    def forward(self, x):
        tokens = self.patches(x).flatten(2).transpose(1, 2)
        units = tokens[:, windows(8, 2)].unflatten(1, (16, 4))  # four tokens side by side
        pooled, keys = units.amax(2), self.keys(units).flatten(1, 2)
        weights = (self.queries(pooled) @ keys.transpose(1, 2)).softmax(-1)
        pooled = (pooled + weights @ self.fc(units).flatten(1, 2))[:, self.order]
        grid = self.middle(pooled).transpose(1, 2).unflatten(2, (4, 4))
        return self.last(self.late(grid.flatten(2).transpose(1, 2)).mean(1))


@pytest.mark.slow
def test_pooled_tokens_are_followed():
    model = Pooled(torch.arange(16))
    assert DualBranch(model, input_size=32).targets[0].layout.shape == (8, 4, 4)
    with pytest.raises(ModelError, match="must lie as the image's do"):
        DualBranch(Pooled(windows(4, 2)), input_size=32)
