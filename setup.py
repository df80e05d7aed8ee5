"""What pyproject.toml can't say: the parts in C, for processors that we have tested them on.

They are optional: where there is no compiler, the package is installed without, and captions and training take longer.
"""

import platform
import sys

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

INSTRUCTIONS = {
    "avx2": ["-mavx2", "-mfma"],
    "avx512": ["-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mavx2", "-mfma"],
}
compiled = sys.platform == "linux" and platform.machine() == "x86_64"


class Libraries(build_ext):
    """Shared libraries, loaded by their path (`opencoca.model.native`), that Python takes for no modules."""

    def get_ext_filename(self, fullname: str) -> str:
        *folders, name = fullname.split(".")
        return "/".join([*folders, f"lib{name}.so.1"])


class Wheel(bdist_wheel):
    """One for every Python: nothing in the libraries depends on it."""

    def get_tag(self) -> tuple[str, str, str]:
        return "py3", "none", super().get_tag()[2]


setup(
    cmdclass={"build_ext": Libraries, "bdist_wheel": Wheel},
    ext_modules=[
        Extension(
            f"opencoca.model.native_{name}",
            ["native/decode_step.c", "native/attention.c", "native/gelu.c"],
            depends=["native/vectors.h"],
            extra_compile_args=["-O3", "-std=gnu11", "-fopenmp", *flags],
            extra_link_args=["-fopenmp"],
            optional=True,
        )
        for name, flags in INSTRUCTIONS.items()
        if compiled
    ],
)
