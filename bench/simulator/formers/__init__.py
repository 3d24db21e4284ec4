"""Who is computed in an engine's next iteration: the product's policy, and those of the systems compared with."""

from bench.simulator.formers.interface import Formed, Former, View
from bench.simulator.formers.paper import PaperFormer
from bench.simulator.formers.slack import SlackFormer
from bench.simulator.formers.stock import PrefillFirstFormer, StockFormer

__all__ = ["Formed", "Former", "PaperFormer", "PrefillFirstFormer", "SlackFormer", "StockFormer", "View"]
