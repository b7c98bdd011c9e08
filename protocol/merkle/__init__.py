"""Linear Merkle summaries: a trie whose nodes are sums, so that two of them can be subtracted.

A classic Merkle node says whether two sets differ below it. A node that is the *sum* of keyed
tokens also says by what: if one block differs, the difference of the two sums is its token.
So a comparison ends where the differences part, not where the blocks do; a change is one
addition; and every level and fan-out is had by folding one flat array.

`cells` holds the arrays and their form on the wire, `fold` makes upper levels, `diff` reads
the difference of two runs of cells, `codes` packs answers.
"""
