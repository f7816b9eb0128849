"""The architectures that can be reached from a traced model, what they cost, and how to build them.

Cao, Wang, Kitani, "Learnable Embedding Space for Efficient Neural Architecture Compression", ICLR
2019, section 3.2, for any traced graph.
"""
