"""Sessions in forked processes, and pickled ones: advice at once, and no hang at the end.

Everything runs in processes of its own, with a time limit.
"""

import copy
import os
import pickle  # noqa: TID251 (what is pickled here is ours)
import subprocess
import sys
import textwrap

import numpy as np
import pytest

from sigcam.core.errors import UsageError
from sigcam.runtime.session import load

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")

BACKENDS = {"ort": "onnxruntime", "openvino": "openvino"}
IMAGE = np.random.default_rng(3).integers(0, 256, (56, 56, 3), np.uint8)

BEGIN = """
import os, sys, gc, multiprocessing, warnings
import numpy as np
from sigcam.core.errors import BackendUnavailableError, UsageError
from sigcam.runtime.session import load

warnings.filterwarnings("ignore", category=DeprecationWarning)  # fork beside threads, Python 3.12
path, backend = sys.argv[1:]
IMAGE = np.random.default_rng(3).integers(0, 256, (56, 56, 3), np.uint8)

def refused(function):
    try:
        function()
    except UsageError as exc:
        assert "was forked from" in str(exc) and "after the fork" in str(exc), exc
    else:
        raise AssertionError("nothing was raised")

def end_of(pid):
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert code == 7, code
"""

EVERY_ENTRY = """
session = load(path, backend)
[first] = session.explain(IMAGE)
open_stream = session.stream([IMAGE] * 20, readers=2)
next(open_stream)
returned = session.stream([IMAGE] * 20, on_error="return", readers=2)
next(returned)
pid = os.fork()
if pid == 0:
    refused(lambda: session.explain(IMAGE))
    refused(lambda: session.explain([IMAGE, IMAGE]))
    refused(lambda: session.explain(IMAGE, method="eigencam"))
    refused(lambda: session.stream([IMAGE]))
    refused(lambda: next(open_stream))
    refused(lambda: next(returned))
    refused(lambda: first.for_classes(1))
    refused(lambda: session._model.run(IMAGE[None]))
    refused(lambda: session._model.backend.infer({}))
    assert first.heatmap.shape == (56, 56) and session.spec.num_classes == 4
    assert first.overlay().shape == (56, 56, 3)
    session.close()
    del session, first, open_stream, returned
    gc.collect()
    sys.exit(7)
end_of(pid)
session.explain(IMAGE)  # this process goes on
first.for_classes(1)
print("done")
"""

LOADED_AFTER = """
session = load(path, backend)
wanted = session.explain(IMAGE)[0].cam
pid = os.fork()
if pid == 0:
    with load(path, backend) as own:
        np.testing.assert_array_equal(own.explain(IMAGE)[0].cam, wanted)
        again = os.fork()  # and once more, one deeper
        if again == 0:
            refused(lambda: own.explain(IMAGE))
            refused(lambda: session.explain(IMAGE))
            sys.exit(7)
        end_of(again)
        own.explain(IMAGE)
    sys.exit(7)
end_of(pid)
print("done")
"""

NOTHING_DONE = """
session = load(path, backend)
pid = os.fork()
if pid == 0:
    sys.exit(7)
end_of(pid)
print("done")
"""

POOL = """
session = load(path, backend)

def work(number):
    try:
        session.explain(IMAGE)
    except UsageError as exc:
        return str(exc)

if __name__ == "__main__":
    context = multiprocessing.get_context("fork")
    with context.Pool(2) as pool:
        for text in pool.map(work, range(4)):
            assert "after the fork" in text
        pool.close()
        pool.join()
    child = context.Process(target=refused, args=(lambda: session.explain(IMAGE),))
    child.start()
    child.join(60)
    assert child.exitcode == 0, child.exitcode
    print("done")
"""

A_PRELOADING_SERVER = """
session = load(path, backend)  # as gunicorn's --preload does
session.explain(IMAGE)
workers = []
for _ in range(2):
    pid = os.fork()
    if pid == 0:
        refused(lambda: session.explain(IMAGE))
        session = load(path, backend)  # in the hook after the fork
        for _ in range(3):
            session.explain(IMAGE)
        sys.exit(7)
    workers.append(pid)
for pid in workers:
    end_of(pid)
print("done")
"""


CLOSED_BEFORE = """
load(path, backend).close()
pid = os.fork()
if pid == 0:
    if backend == "openvino":  # which would hang
        try:
            load(path, backend)
        except BackendUnavailableError as exc:
            assert "closed before the fork" in str(exc), exc
        else:
            raise AssertionError("nothing was raised")
    with load(path) as session:
        session.explain(IMAGE)
    sys.exit(7)
end_of(pid)
with load(path, backend) as session:
    session.explain(IMAGE)
print("done")
"""


@pytest.fixture(scope="module", params=BACKENDS)
def backend(request):
    pytest.importorskip(BACKENDS[request.param])
    return request.param


@pytest.mark.parametrize(
    "script", [EVERY_ENTRY, LOADED_AFTER, NOTHING_DONE, POOL, A_PRELOADING_SERVER,
               CLOSED_BEFORE],
    ids=["every entry", "loaded after", "nothing done", "pool", "preloading server",
         "closed before"],
)  # fmt: skip
def test_a_forked_process(make_artifact, backend, script, tmp_path):
    path = make_artifact(head_input="features")
    file = tmp_path / "script.py"
    file.write_text(BEGIN + textwrap.dedent(script))
    done = subprocess.run(
        [sys.executable, str(file), str(path), backend],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout.split()[-1:]) == (0, ["done"]), done.stderr[-2000:]


def test_what_holds_a_backend_is_not_pickled(make_artifact, backend):
    with load(make_artifact(head_input="features"), backend) as session:
        [first] = session.explain(IMAGE)
        held = (session, session._model, session._model.backend, session._model.head_graph)
        for one in held:
            for way in (pickle.dumps, copy.copy, copy.deepcopy):
                with pytest.raises(UsageError, match=r"can't be pickled or copied.*after the fork"):
                    way(one)
        with pytest.raises(UsageError, match="can't be pickled"):
            pickle.dumps({"model": [session]})
        for copied in (pickle.loads(pickle.dumps(first)), copy.deepcopy(first)):
            np.testing.assert_array_equal(copied.heatmap, first.heatmap)
            with pytest.raises(UsageError, match=r"is a copy or was pickled.*after the fork"):
                copied.for_classes(1)
