"""What a node really has, asked of it directly and without its network."""

from __future__ import annotations

import http.client

from fused.cid import CID, format_cid, inline_block, parse_cid, verify
from fused.dag.node import links_of
from tests.support.kubo_node import KuboNode


def blocks_at(node: KuboNode, root: str) -> dict[CID, bytes]:
    """Every block of the DAG at `root`, as the node itself has it, verified. Fails if one is not there or wrong."""
    assert node.port is not None
    connection = http.client.HTTPConnection("127.0.0.1", node.port, timeout=30)
    found: dict[CID, bytes] = {}
    left = [parse_cid(root)]
    try:
        while left:
            cid = left.pop()
            data = found.get(cid) or inline_block(cid)
            if data is None:
                connection.request("POST", f"/api/v0/block/get?arg={format_cid(cid)}&offline=true")
                response = connection.getresponse()
                data = response.read()
                assert response.status == 200, f"{format_cid(cid)}: {data.decode(errors='replace')}"
                verify(cid, data)
            if cid not in found:
                found[cid] = data
                left += links_of(cid, data)
    finally:
        connection.close()
    return found
