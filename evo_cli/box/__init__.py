"""The model in the box: a small trained one, for whoever gives no other. Its card is nano/README.md."""

from pathlib import Path

MODEL = Path(__file__).parent / "nano"
ABOUT = "4.8M parameters, trained on genomes of gammaproteobacteria: for trying out, and for bacterial DNA at most"
