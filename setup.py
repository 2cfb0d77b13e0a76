"""Packaging of stemdl: all of it is declared here, for installs from a checkout and from an sdist."""

from pathlib import Path

from setuptools import find_namespace_packages, find_packages, setup
from setuptools.command.editable_wheel import editable_wheel

HERE = Path(__file__).resolve().parent

#: Packages as Nion Swift's PlugInManager needs them: `nionswift_plugin` is a namespace shared by all plugins.
PLUGIN = find_namespace_packages(str(HERE), include=["nionswift_plugin.stemdl", "nionswift_plugin.stemdl.*"])
CORE = find_packages(str(HERE), include=["stemdl_core", "stemdl_core.*"])

SWIFT = [
    "nionswift>=16.16,<17",
    "nionswift-instrumentation>=23.6",
    "nionswift-usim>=5.4",
    "nionswift-tool>=5.1",
]
VIDEO = ["imageio-ffmpeg"]
MULTISLICE = ["abtem>=1.0.5"]
TEST = ["pytest>=8", "pytest-timeout", "pytest-xdist", "hypothesis>=6", "setuptools>=77", "ruff", "mypy"]


class SwiftEditable(editable_wheel):
    """Editable installs that Nion Swift can see.

    Swift walks `nionswift_plugin.__path__`, in which the import hooks of setuptools' default editable mode
    do not appear; a plain path entry does.
    """

    def initialize_options(self) -> None:
        super().initialize_options()
        self.mode = "compat"


setup(
    name="stemdl",
    version=next(
        line.split('"')[1]
        for line in (HERE / "stemdl_core" / "_version.py").read_text().splitlines()
        if line.startswith("__version__")
    ),
    description="Deep learning of atomically resolved STEM images: atoms, defects, transformations",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="MIT",
    license_files=["LICENSE"],
    classifiers=[
        "Development Status :: 4 - Beta",
        "Intended Audience :: Science/Research",
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Topic :: Scientific/Engineering :: Image Recognition",
        "Topic :: Scientific/Engineering :: Physics",
    ],
    keywords="electron microscopy, STEM, HAADF, graphene, deep learning, nionswift",
    python_requires=">=3.11",
    packages=[*CORE, *PLUGIN, "stemdl_weights"],
    # The trained models lie in the top-level folder `weights` and are installed as a package of data files.
    package_dir={"stemdl_weights": "weights"},
    package_data={
        "stemdl_core": ["py.typed"],
        "nionswift_plugin.stemdl": ["*.json", "py.typed", "resources/*"],
        "stemdl_weights": ["*/*.json", "*/*.safetensors", "*/*.md", "*/*.csv", "*/*.png"],
    },
    include_package_data=False,
    zip_safe=False,
    install_requires=[
        "numpy>=1.26",
        "scipy>=1.11",
        "scikit-image>=0.22",
        "networkx>=3.2",
        "pandas>=2.1",
        "matplotlib>=3.8",
        "pillow>=10",
        "ase>=3.23",
        "rosettasciio>=0.6",
        "threadpoolctl>=3.2",
        "tifffile>=2023.8",
        "h5py>=3.10",
        "safetensors>=0.4.2",
        "tqdm>=4.65",
        "trackpy>=0.6.2",
        "niondata>=15.6",
        "nionutils>=4.11",
        "torch>=2.2,<=2.13.0",
    ],
    extras_require={
        "swift": SWIFT,
        "video": VIDEO,
        "multislice": MULTISLICE,
        "test": TEST,
        "all": [*SWIFT, *VIDEO, *MULTISLICE],
    },
    entry_points={"console_scripts": ["stemdl=stemdl_core.cli:main"]},
    cmdclass={"editable_wheel": SwiftEditable},
)
