"""How a machine becomes able to run FoloVLLM: what the sessions in `noxfile.py` need.

Runs before the package is installed, under the Python that runs nox: standard library, and what
nox itself depends on (`packaging`, and `tomli` before Python 3.11). It never imports `folovllm`.
"""
