"""Images made of those that are stored: means on a coarser grid, broad bands simulated from narrow ones."""

from __future__ import annotations

import numpy as np
import torch
from torch.nn.functional import adaptive_avg_pool2d

from dinov2.data.sample import ImageSpec
from dinov2.data.simulate import responses
from dinov2.sensors import FWHM_PER_SIGMA, SENSORS


def averaged(image: np.ndarray, spec: ImageSpec, pixels: int) -> np.ndarray:
    """float32 ``[..., C, pixels, pixels]``: means of the observations in every cell, nodata where there is none."""
    there = torch.from_numpy(~spec.invalid(image))  # [..., C, H, W]
    sums = adaptive_avg_pool2d(torch.from_numpy(image).where(there, 0.0), pixels)
    share = adaptive_avg_pool2d(there.float(), pixels)
    return (sums / share).where(share > 0, 0.0 if spec.nodata is None else spec.nodata).numpy()


def simulated_spec(sensor: str, gsd_m: float) -> ImageSpec:
    """What simulated bands are: reflectance, NaN where there is none."""
    return ImageSpec(sensor, gsd_m, SENSORS[sensor].band_names, "float32", "reflectance", 1.0, 0.0, np.nan)


def simulated(image: np.ndarray, stored: ImageSpec, shown: ImageSpec) -> np.ndarray:
    """float32 ``[..., K, H, W]``: the bands of ``shown`` as weighted sums of the stored narrow ones ``[..., C, H, W]``.

    Responses are Gaussians of the published centres and widths (dinov2/data/simulate.py). A pixel is NaN where one of
    the bands in its sum is nodata.
    """
    targets, narrow = (gaussians(spec) for spec in (shown, stored))
    weights = responses(targets, *narrow.T)  # [K, C]
    missing = stored.invalid(image)
    values = np.einsum("kc,...chw->...khw", weights, np.where(missing, 0, image * stored.scale + stored.offset))
    unseen = np.einsum("kc,...chw->...khw", (weights > 0).astype(np.float32), missing.astype(np.float32)) > 0
    return np.where(unseen, np.nan, values).astype(np.float32)


def gaussians(spec: ImageSpec) -> np.ndarray:
    """``[C, 2]``: centre and sigma of every band in nm; ValueError names one that has none."""
    bands = [(band.name, band.centre_nm, band.fwhm_nm) for band in spec.band_objects]
    unknown = [name for name, centre, width in bands if centre is None or width is None]
    if unknown:
        raise ValueError(
            f"layer.simulate: {spec.sensor}/{unknown[0]} has no wavelength; simulate optical sensors alone"
        )
    return np.array([(centre, (width or 0) / FWHM_PER_SIGMA) for _, centre, width in bands], np.float64)
