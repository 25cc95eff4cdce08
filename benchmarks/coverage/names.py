"""The networks that `run.py` goes through: one per family, a small one of each.

An entry is a name; "@" and the input's side where that isn't the network's own (most graphs are
the same at every size, and a small one takes less time); ">" and a target layer where the network
needs one named. Families are torchvision's, timm's (`timm.list_modules()`, timm 1.0.31) and
transformers' (`hugging_face.py`), with a second network where a family has several kinds of head
or of attention. Left out are timm's towers of language models, which have neither classes nor a
fixed input: deepseek_vit, gemma4_vit and qwen3_vit.
"""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.coverage import hugging_face


@dataclass(frozen=True)
class Network:
    """A network to try.

    Attributes:
        arch: as `load_model` takes it, or a name of `hugging_face`.
        size: side of the input; the network's own when None.
        target_layer: named by its user; None where sigcam finds it.
    """

    arch: str
    size: int | None = None
    target_layer: str | None = None

    @property
    def name(self) -> str:
        """The name of its row: with the target layer, without the size."""
        return self.arch + (f">{self.target_layer}" if self.target_layer else "")


def parsed(entry: str) -> Network:
    """Reads an entry.

    Example:
        >>> parsed("timm/resnet10t@64")
        Network(arch='timm/resnet10t', size=64, target_layer=None)
    """
    rest, _, target = entry.partition(">")
    arch, _, size = rest.partition("@")
    return Network(arch, int(size) if size else None, target or None)


TORCHVISION = """
    alexnet@128 convnext_tiny@96 densenet121@96 efficientnet_b0@96 efficientnet_v2_s@96
    googlenet@96 inception_v3@160 mnasnet0_5@96 mobilenet_v2@96 mobilenet_v3_small@96
    regnet_y_400mf@96 resnet18@96 resnext50_32x4d@96 wide_resnet50_2@96 shufflenet_v2_x0_5@96
    squeezenet1_1@96 swin_t@96 swin_v2_t@128 vgg11@96 vit_b_32 maxvit_t
"""

LOCALISATION = "wsol-resnet50@96 wsol-vgg16@96 wsol-vgg16-mlp wsol-inceptionv3@160"

LITE = "efficientnet_lite0@96"

TIMM = """
    hiera_tiny_224@96 nest_tiny@96 twins_svt_small@96 samvit_base_patch16_224@96 levit_128s@96
    tf_efficientnet_cc_b0_4e@96 crossvit_9_240 crossvit_9_240>blocks.2.blocks.0.0.norm1
    botnet26t_256@96 lambda_resnet26t@96 gernet_s@96 repvgg_a0@96
    resnet50_clip@96 cait_xxs24_224@96 coat_lite_mini@96 convit_tiny@96
    convmixer_1024_20_ks9_p14@98 convnext_atto@96 convnextv2_atto@96 cpubone_nano@96
    darknet17@96 cspnext_tiny@96 davit_tiny@96 deit_tiny_patch16_224@96
    deit_tiny_distilled_patch16_224@96 densenet121@96 dla46_c@96 dpn48b@96 edgenext_xx_small@96
    efficientformer_l1 efficientformerv2_s0@96 tinynet_e@96 mixnet_s@96 efficientvim_m1@96
    efficientvit_b0@96 efficientvit_m0@96 eva02_tiny_patch14_224@98 vit_small_patch16_dinov3@96
    fasternet_t0@96 fastvit_t8@96 focalnet_tiny_srf@96 gcvit_xxtiny@96 ghostnet_050@96
    ghostnetv3_050@96 hardcorenas_a@96 hgnetv2_b0@96 hieradet_small@96 hrnet_w18_small@96
    iformer_t@96 inception_next_atto@96 inception_resnet_v2@160 inception_v3@160 inception_v4@160
    lcnetv2_small@96 levit_conv_128s@96 lowformer_b0@96 mambaout_femto@96 test_maxvit
    coatnet_0_224@96 poolformer_s12@96 caformer_s18@96 mixer_s32_224@96 gmlp_ti16_224@96
    resmlp_12_224@96 mobilenetv3_small_050@96 lcnet_035@96 mobilevit_xxs@96 mobilevitv2_050@96
    mvitv2_tiny@96 mvitv2_small_cls@160 nextvit_small@96 test_nfnet@96 nf_regnet_b0@96
    pit_ti_224@96 pit_ti_distilled_224@96 pvt_v2_b0@96 rdnet_tiny@96 regnetx_002@96
    repghostnet_050@96 repvit_m0_9@96 res2net50_48w_2s@96 resnest14d@96 resnet10t@96
    resnetv2_18@96 rexnet_100@96 selecsls42@96 legacy_seresnet18@96 sequencer2d_s@96 shvit_s1@96
    skresnet18@96 starnet_s050@96 swiftformer_xs@96 swin_tiny_patch4_window7_224@96
    swinv2_tiny_window8_256@128 swinv2_cr_tiny_224@96 tiny_vit_5m_224@96 tnt_s_patch16_224@96
    tresnet_m@96 twins_pcpvt_small@96 vgg11@96 visformer_tiny@96 test_vit@96
    vit_tiny_patch16_224@96 vit_base_patch32_siglip_256@128 vit_medium_patch16_reg4_gap_256@96
    vit_tiny_r_s16_p8_224@96 test_vit_relpos@96 vitamin_small_224@96 volo_d1_224@96
    ese_vovnet19b_slim_dw@96 legacy_xception@96 xception41@96 xcit_nano_12_p16_224@96
    halonet26t naflexvit_base_patch16_gap@96 mobilenetv5_base@96 csatv2@128
    beit_base_patch16_224@96 nasnetalarge@96 pnasnet5large@96
"""

ENTRIES: tuple[str, ...] = (
    *(hugging_face.name_of(family) for family in hugging_face.FAMILIES),
    *(f"timm/{entry}" for entry in TIMM.split()),
    *TORCHVISION.split(),
    *LOCALISATION.split(),
    *LITE.split(),
)

NETWORKS = {network.name: network for network in map(parsed, ENTRIES)}
"""The networks by the names of their rows."""
