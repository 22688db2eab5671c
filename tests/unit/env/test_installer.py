"""What pip's failures are said to mean."""

import pytest

from env.installer import explain


@pytest.mark.parametrize(
    ("output", "advice"),
    [
        ("ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device",
         "The disk is full"),
        ("ERROR: THESE PACKAGES DO NOT MATCH THE HASHES FROM THE REQUIREMENTS FILE.",
         "not the one that the lock names"),
        ("Retrying after: NewConnectionError\nERROR: No matching distribution found for torch",
         "could not be reached"),
        ("SSLError(SSLCertVerificationError('CERTIFICATE_VERIFY_FAILED'))", "PIP_CERT"),
        ("ERROR: No matching distribution found for absent==1.0", "absent==1.0 is not to be had"),
        ("error: subprocess-exited-with-error", "had no ready-made wheel"),
        ("Segmentation fault", "What was printed may tell why"),
    ],
)  # fmt: skip
def test_explain(tmp_path, output, advice):
    log = tmp_path / "setup.log"

    said = str(explain("Installing torch", output, log))

    assert said.startswith("Installing torch failed.\n")
    assert advice in said
    assert f"The end of {log}:" in said
    assert f"  | {output.splitlines()[-1]}" in said
