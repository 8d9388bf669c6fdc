"""Networks: the MAE condition, the denoising U-Net and the reconstructor that joins them."""
