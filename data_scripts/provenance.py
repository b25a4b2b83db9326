"""Where the datasets that come along are from: what their cards, and those of models trained on them, say of them."""

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Provenance:
    """
    What is known of the scans of a dataset.

    Attributes:
        source: one sentence on who made them.
        license: as the Hub names it.
        surface: what was scanned; `None` where an option of the dataset says it.
        microscope: with what, and when.
        sizes: of the scans, and the bias.
        speed: of the tip.
        tags: for the Hub.
    """

    source: str
    license: str
    surface: str | None
    microscope: str
    sizes: str
    speed: str
    tags: tuple[str, ...] = ()


# Gordon, Junqueira, Moriarty, Mach. Learn.: Sci. Technol. 1, 015001 (2020)
_TOOLBOX = "Gordon et al. (https://github.com/OGordon100/SPM-Toolbox)"
_HSI100 = Provenance(
    source=f"Labelled STM scans of H:Si(100) of {_TOOLBOX}.",
    license="gpl-3.0",
    surface="H:Si(100)",
    microscope="Omicron variable-temperature STM, March 2014 to November 2015",
    sizes="3×3 to 80×80 nm², −2 to +2 V; which scan had which is not recorded, so there are no figures by size",
    speed="not recorded",
    tags=("hydrogen-terminated-silicon",),
)
PROVENANCE = {
    "hsi100": _HSI100,
    "matlab": replace(
        _HSI100,
        source="The MATLAB release of the labelled STM scans of H:Si(100) of Gordon et al., augmented by its authors.",
    ),
    "spliced": replace(_HSI100, source=f"Pairs of STM scans of H:Si(100) of {_TOOLBOX}, joined at a known line."),
    "simulated": Provenance(
        source="Simulated by Scanline (data_scripts/simulation).",
        license="apache-2.0",
        surface=None,
        microscope="none",
        sizes="3 to 80 nm",
        speed="a feedback loop lags and rings by some pixels; nothing else of speed is simulated",
        tags=("simulated",),
    ),
}
