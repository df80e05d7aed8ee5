"""The image encoder: a plain ViT; the poolers take a class token's place, unless the configuration wants one too."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from opencoca.config import VisionConfig
from opencoca.model.blocks import Block


class VisionTransformer(nn.Module):
    """ViT encoder (CoCa section 3.2). The norm after the last block is the poolers' `norm_context`."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.config = config
        self.patch = nn.Linear(3 * config.patch_size_px**2, config.width, bias=config.patch_bias)
        self.class_D = nn.Parameter(torch.empty(config.width)) if config.class_token else None
        self.positions_PD = nn.Parameter(torch.empty(config.class_token + config.grid**2, config.width))
        self.registers_PD = nn.Parameter(torch.empty(config.registers, config.width)) if config.registers else None
        self.norm_input = nn.LayerNorm(config.width) if config.norm_input else None
        self.blocks = nn.ModuleList(
            Block(
                config.width,
                config.num_heads,
                config.mlp_width,
                causal=False,
                qk_norm=config.qk_norm,
                activation=config.activation,
            )
            for _ in range(config.depth)
        )

    def forward(self, pixels_BCHW: Tensor, patch_noise_BP: Tensor | None = None) -> Tensor:
        """Encodes pixels [B,C,H,W], H and W multiples of the patch size, into tokens [B,P,D].

        They stand row by row, or by falling prominence where `max_patches` leaves some out, behind the class token if
        there is one. With `patch_noise`, only the `train_patches` with most noise are read of those that would be.
        """
        patches_BPX = patchify(pixels_BCHW, self.config.patch_size_px)
        positions_PD = self.positions(*(side // self.config.patch_size_px for side in pixels_BCHW.shape[2:]))
        chosen_BP = None
        if 0 < self.config.max_patches < patches_BPX.shape[1]:
            chosen_BP = prominence(pixels_BCHW, self.config.patch_size_px).topk(self.config.max_patches, dim=1).indices
        if patch_noise_BP is not None and self.config.train_patches:
            drawn_BP = patch_noise_BP.topk(self.config.train_patches, dim=1).indices
            chosen_BP = drawn_BP if chosen_BP is None else chosen_BP.gather(1, drawn_BP)
        if chosen_BP is not None:
            patches_BPX = patches_BPX.gather(1, chosen_BP[..., None].expand(-1, -1, patches_BPX.shape[-1]))
            # not positions_PD[chosen_BP]: its backward adds in an order that depends on the threads
            positions_PD = F.embedding(chosen_BP, positions_PD)
        tokens_BPD = self.patch(patches_BPX) + positions_PD
        if self.class_D is not None:
            class_D = self.class_D + self.positions_PD[0]
            tokens_BPD = torch.cat((class_D.expand(tokens_BPD.shape[0], 1, -1), tokens_BPD), dim=1)
        if self.registers_PD is not None:
            tokens_BPD = torch.cat((tokens_BPD, self.registers_PD.expand(tokens_BPD.shape[0], -1, -1)), dim=1)
        if self.norm_input is not None:
            tokens_BPD = self.norm_input(tokens_BPD)
        for block in self.blocks:
            tokens_BPD = block(tokens_BPD)
        return tokens_BPD if self.registers_PD is None else tokens_BPD[:, : -len(self.registers_PD)]

    def positions(self, rows: int, columns: int) -> Tensor:
        """Position embeddings [P,D] for a grid of patches; another grid than the trained one is interpolated."""
        grid = self.config.grid
        trained_PD = self.positions_PD[1:] if self.config.class_token else self.positions_PD
        return resized_grid(trained_PD, (grid, grid), (rows, columns))


def resized_grid(trained_PD: Tensor, trained: tuple[int, int], wanted: tuple[int, int]) -> Tensor:
    """Position embeddings [P,D] of a grid of `trained` rows and columns for one of `wanted`, by bicubic interpolation.

    Where the grid becomes smaller, neighbours are averaged (antialias).
    """
    if wanted == trained:
        return trained_PD
    trained_1DHW = trained_PD.T.reshape(1, -1, *trained)
    wanted_1DHW = F.interpolate(trained_1DHW.float(), wanted, mode="bicubic", antialias=True, align_corners=False)
    return wanted_1DHW.to(trained_PD.dtype).flatten(2)[0].T


def prominence(pixels_BCHW: Tensor, patch_size_px: int) -> Tensor:
    """How much each patch stands out, [B,P]: mean squared difference from the average colour of the picture's edge."""
    top, bottom, left, right = (
        pixels_BCHW[:, :, 0],
        pixels_BCHW[:, :, -1],
        pixels_BCHW[..., 0],
        pixels_BCHW[..., -1],
    )
    edge_BC = torch.cat((top, bottom, left, right), dim=2).mean(dim=2)
    squares_B1HW = (pixels_BCHW - edge_BC[..., None, None]).square().mean(dim=1, keepdim=True)
    return F.avg_pool2d(squares_B1HW, patch_size_px).flatten(1)


def patchify(pixels_BCHW: Tensor, patch_size_px: int) -> Tensor:
    """Cuts pixels [B,C,H,W] into patches [B,P,C*p*p], row by row, each flattened as a convolution kernel is.

    Raises: ValueError where a side isn't a multiple of the patch size.
    """
    _, _, height, width = pixels_BCHW.shape
    if height % patch_size_px or width % patch_size_px:
        raise ValueError(f"pictures of {height}x{width} px can't be cut into patches of {patch_size_px} px")
    patches = pixels_BCHW.unflatten(3, (-1, patch_size_px)).unflatten(2, (-1, patch_size_px))
    return patches.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)
