"""Whatever peers and users call things, no name leads to a file outside of where such things are.

A database that a URL names is looked for among those served, never in the file system: what is
asked of a listener by such names is in tests/integration/test_security_outside.py.
"""

from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from trio_p2p.errors import ConfigurationError, InvalidDocumentError
from trio_p2p.ids import collection_name, document_id
from trio_p2p.model.blob import parse_digest
from trio_p2p.security.keystore import FileKeyStore
from trio_p2p.store.blob_files import BlobFiles
from trio_p2p.store.database import open_database

HOSTILE = [
    "..",
    "../x",
    "../../etc/passwd",
    "/etc/passwd",
    "a/../../b",
    "..\\x",
    "C:\\x",
    "x\0",
    "con",
    ".",
    "~root",
    "%2e%2e%2f",
    "\N{FULLWIDTH FULL STOP}\N{FULLWIDTH FULL STOP}/x",
    "sha1-../../../../etc/passwd=",
    "sha1-" + "/" * 27 + "=",
]
NAMES = st.one_of(st.sampled_from(HOSTILE), st.text(), st.from_regex(r"sha1-[A-Za-z0-9+/]{27}="))


def is_directly_in(path: Path, directory: Path) -> bool:
    return path.resolve().parent == directory.resolve()


@given(NAMES)
def test_a_label_is_a_file_of_its_key_store(tmp_path_factory, label):
    try:
        path = FileKeyStore("keys")._path(label)
    except (ConfigurationError, UnicodeEncodeError):
        return
    assert is_directly_in(path, Path("keys"))
    assert path.suffix == ".p12"


@given(NAMES)
@example("sha1-" + "/" * 26 + "8=")
def test_a_digest_is_a_file_of_the_blobs(digest):
    sha1 = parse_digest(digest)
    if sha1 is not None:
        path = BlobFiles(Path("shop.p2p"), lambda: 0).path(sha1)
        assert is_directly_in(path, Path("shop.p2p", "blobs"))


@pytest.mark.parametrize("name", HOSTILE)
async def test_documents_and_collections_are_no_files(tmp_path, name):
    inside = tmp_path / "data" / "shop.p2p"
    async with open_database(inside) as database:
        with suppress(InvalidDocumentError):
            await database.default_collection.put(document_id(name), {})
        try:
            await database.create_collection(name)
        except (ValueError, InvalidDocumentError):
            with pytest.raises(ValueError, match="collection"):
                collection_name(name)
    assert [path.name for path in tmp_path.iterdir()] == ["data"]
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["shop.p2p"]
