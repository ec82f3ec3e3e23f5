"""Lists of connections in files: what is read of them, and what is refused."""

from __future__ import annotations

import gzip

import pytest

from largesparse.data.edges import read_edges
from largesparse.errors import DataError

PAIRS = [("BRCA1", "repair"), ("TP53", "repair"), ("TP53", "cell cycle")]


def read(folder, text: str | bytes, name: str = "edges.csv"):
    path = folder / name
    content = text if isinstance(text, bytes) else text.encode()
    path.write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    return read_edges(path)


PLAIN = "BRCA1,repair\nTP53,repair\nTP53,cell cycle\n"


@pytest.mark.parametrize(
    ("text", "name"),
    [
        (PLAIN, "edges.csv"),
        ("source,target\n" + PLAIN, "edges.csv"),
        ("\ufeffSource,TARGET\n" + PLAIN, "edges.csv"),
        (PLAIN.replace("\n", "\r\n"), "edges.csv"),
        (PLAIN.rstrip(), "edges.csv"),
        (PLAIN.replace(",", "\t"), "edges.tsv"),
        (PLAIN.replace(",", ";"), "edges.csv"),
        (PLAIN, "edges.csv.gz"),
        ('"BRCA1" , "repair"\n\n TP53,  repair \n , \n"TP53","cell cycle"\n\n', "edges.csv"),
        ("target,note,source\nrepair,a,BRCA1\nrepair,,TP53\ncell cycle,c,TP53\n", "edges.csv"),
        ("repair\tA set\tBRCA1\tTP53\t\ncell cycle\t\tTP53\n\n", "sets.gmt"),
        ("repair\tA set\tBRCA1\tTP53\t\ncell cycle\t\tTP53\n", "sets.gmt.gz"),
    ],
)
def test_connections_are_read_whatever_the_text_looks_like(tmp_path, text, name):
    found = read(tmp_path, text, name)
    assert list(zip(found.sources, found.targets, strict=True)) == PAIRS
    assert found.weights is None


def test_weights_and_names_that_look_like_something_else(tmp_path):
    text = 'target,weight,source\nNA,-1.5,"x, ""y"""\nnan,0,007\n1.0,2e-3,µ\n'
    found = read(tmp_path, text)
    assert found.sources == ['x, "y"', "007", "µ"]
    assert found.targets == ["NA", "nan", "1.0"]
    assert found.weights == [-1.5, 0.0, 2e-3]
    assert read(tmp_path, "a,b,3\nc,d,4\n").weights == [3, 4]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "is empty"),
        ("source,target\n", "has no connection"),
        ("a,b\nc\n", r"line 2, \['c'\], is no connection"),
        ("a,b\n,d\n", "line 2"),
        ("source,target\na,b\nc,\n", "line 3"),
        ("a,b\nc,d,1\n", "line 2"),
        ("a,b,c,d\n", "the first line has 4 fields"),
        ("a\nb\n", "the first line has 1 field"),
        ("gene,set,size\na,b,1\n", "line 1 has the weight 'size', no number"),
        ("a,b,1\nc,d,nan\n", "line 2 has the weight 'nan'"),
        ("a,b\n\n,\nc\n", "line 4"),
        ("source,target\n\na,b\nc,\n", "line 4"),
        ("a,b,1\nc,d,1e999\n", "line 2 has the weight '1e999'"),
        (b"a,b\n\xff\xfe,d\n", "cannot be read as a list of connections"),
    ],
)
def test_what_is_no_list_of_connections_is_refused(tmp_path, text, told):
    with pytest.raises(DataError, match=told):
        read(tmp_path, text)
    with pytest.raises(DataError, match="cannot be read"):
        read_edges(tmp_path / "nowhere.csv")


def test_gene_sets_without_genes_are_refused(tmp_path):
    with pytest.raises(DataError, match="no gene sets"):
        read(tmp_path, "repair\tA set\n", "sets.gmt")
    for line in ("repair", "\tA set\tTP53", " \t\tTP53"):
        with pytest.raises(DataError, match="line 3 is no gene set"):
            read(tmp_path, f"cycle\t\tTP53\n\n{line}\n", "sets.gmt")


def test_capitals_of_a_suffix_are_those_of_gene_sets(tmp_path):
    assert read(tmp_path, "a b\t\tTP53\tc\n", "SETS.GMT").sources == ["TP53", "c"]
