"""The table adds up what the tests said."""

from types import SimpleNamespace


def test_shares_of_one_name_are_added_up(request):
    plugin = request.config.pluginmanager.get_plugin(str(request.path.parents[1] / "conftest.py"))

    def report(name, n, survived, lost, stock=""):
        share = {"name": name, "expected": "whole", "n": n, "survived": survived, "lost": lost, "stock": stock}
        return SimpleNamespace(failed=False, user_properties=[("fault", share), ("other", 1)])

    failed = SimpleNamespace(failed=True, user_properties=[], nodeid="tests/faults/test_hang.py::test_a_hang")
    said = [report("kill", 10, 9, 1.5), report("kill", 5, 5, 0.25, "5 of 30"), report("disk", 1, 1, 0), failed]
    found = plugin.rows(said)
    assert [(r["name"], r["n"], r["survived"], r["lost"], r["stock"]) for r in found] == [
        ("kill", 15, 14, 1.75, "5 of 30"),
        ("disk", 1, 1, 0, ""),
        ("test_hang.py::test_a_hang", 1, 0, 0, ""),
    ]
    text = plugin.table(found)
    assert "| kill | 15 | 14 | 1.8 s | whole | 5 of 30 |" in text
    assert "| **all** | **17** | **15** |" in text
