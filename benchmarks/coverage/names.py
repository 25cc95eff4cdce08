"""The networks that `coverage.py` goes through: one per family, a small one of each.

A name, or a name, "@" and the input's side where the network's own is large and it takes
a smaller one. Families are torchvision's and timm's (`timm.list_modules()`, timm 1.0.31),
with a second network where a family has several kinds of head or of attention. Left out
are timm's towers of language models, which have neither classes nor a fixed input:
deepseek_vit, gemma4_vit and qwen3_vit.
"""

TORCHVISION = """
    alexnet convnext_tiny densenet121 efficientnet_b0 efficientnet_v2_s googlenet inception_v3
    maxvit_t mnasnet0_5 mobilenet_v2 mobilenet_v3_small regnet_y_400mf resnet18
    resnext50_32x4d wide_resnet50_2 shufflenet_v2_x0_5 squeezenet1_1 swin_t swin_v2_t vgg11
    vit_b_32
"""

LOCALISATION = "wsol-resnet50 wsol-vgg16 wsol-vgg16-mlp wsol-inceptionv3"

LITE = "efficientnet_lite0"

TIMM = """
    beit_base_patch16_224 botnet26t_256 halonet26t lambda_resnet26t gernet_s repvgg_a0
    resnet50_clip cait_xxs24_224 coat_lite_mini convit_tiny convmixer_1024_20_ks9_p14
    convnext_atto convnextv2_atto cpubone_nano crossvit_9_240 csatv2@256 darknet17
    cspnext_tiny davit_tiny deit_tiny_patch16_224 deit_tiny_distilled_patch16_224
    densenet121 dla46_c dpn48b edgenext_xx_small efficientformer_l1 efficientformerv2_s0
    tinynet_e mixnet_s efficientvim_m1 efficientvit_b0 efficientvit_m0
    eva02_tiny_patch14_224 vit_small_patch16_dinov3 fasternet_t0 fastvit_t8
    focalnet_tiny_srf gcvit_xxtiny ghostnet_050 ghostnetv3_050 hardcorenas_a hgnetv2_b0
    hiera_tiny_224 hieradet_small hrnet_w18_small iformer_t inception_next_atto
    inception_resnet_v2@224 inception_v3@224 inception_v4@224 lcnetv2_small levit_128s
    levit_conv_128s lowformer_b0 mambaout_femto test_maxvit coatnet_0_224 poolformer_s12
    caformer_s18 mixer_s32_224 gmlp_ti16_224 resmlp_12_224 mobilenetv3_small_050 lcnet_035
    mobilenetv5_base mobilevit_xxs mobilevitv2_050 mvitv2_tiny mvitv2_small_cls
    naflexvit_base_patch16_gap@224 nasnetalarge@224 nest_tiny nextvit_small test_nfnet
    nf_regnet_b0 pit_ti_224 pit_ti_distilled_224 pnasnet5large@224 pvt_v2_b0 rdnet_tiny
    regnetx_002 repghostnet_050 repvit_m0_9 res2net50_48w_2s resnest14d resnet10t
    resnetv2_18 rexnet_100 selecsls42 legacy_seresnet18 sequencer2d_s shvit_s1 skresnet18
    starnet_s050 swiftformer_xs swin_tiny_patch4_window7_224 swinv2_tiny_window8_256
    swinv2_cr_tiny_224 tiny_vit_5m_224 tnt_s_patch16_224 tresnet_m twins_svt_small
    twins_pcpvt_small vgg11 visformer_tiny test_vit vit_tiny_patch16_224
    vit_base_patch32_siglip_256 vit_medium_patch16_reg4_gap_256 vit_tiny_r_s16_p8_224
    test_vit_relpos samvit_base_patch16_224 vitamin_small_224 volo_d1_224
    ese_vovnet19b_slim_dw legacy_xception@224 xception41@224 xcit_nano_12_p16_224
"""

NAMES: tuple[str, ...] = (
    *(f"timm/{name}" for name in TIMM.split()),
    *TORCHVISION.split(),
    *LOCALISATION.split(),
    *LITE.split(),
)
