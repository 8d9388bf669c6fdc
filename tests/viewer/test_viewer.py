"""The viewer: what its server hands out and refuses, and its page in a real browser."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import http.client
import json
import queue
import re
import shutil
import signal
import subprocess
import sys
import threading
from importlib import resources

import nibabel as nib
import numpy as np
import pytest
from click.testing import CliRunner
from maediff.cli import app

from maediff.errors import InputError, OutputError
from maediff.evaluation import Choice
from maediff.findings import locate
from maediff.report.figures import canonical_index, most_anomalous_voxel
from maediff.tables import read_table
from maediff.viewer import open_viewer


@contextlib.contextmanager
def serving(out, port=0, **options):
    with open_viewer(out, port, **options) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture
def viewer(cohort):
    with serving(cohort.out) as server:
        yield server


def ask(server, path, method="GET", hosts=None, token=True):
    """Send a request as it stands; returns status, headers and content."""
    host, port = server.server_address[:2]
    connection = http.client.HTTPConnection(host, port, timeout=20)
    target = (server.url.split(str(port), 1)[1] if token else "/") + path
    connection.putrequest(method, target, skip_host=True, skip_accept_encoding=True)
    for name in [f"127.0.0.1:{port}"] if hosts is None else hosts:
        connection.putheader("Host", name)
    connection.endheaders()
    with connection.getresponse() as response:
        content = response.read()
        headers = response.headers
    connection.close()
    return response.status, headers, content


GOOD = {"number": 0, "finding": 1, "reader": "anna", "rating": "real", "comment": "left, by the ventricle"}


def post(server, path, value, token=True, **headers):
    host, port = server.server_address[:2]
    connection = http.client.HTTPConnection(host, port, timeout=20)
    target = (server.url.split(str(port), 1)[1] if token else "/x/") + path
    content = value if isinstance(value, bytes) else json.dumps(value).encode()
    with contextlib.closing(connection):
        connection.request("POST", target, content, {"Content-Type": "application/json"} | headers)
        with connection.getresponse() as response:
            return response.status, response.read().decode()


def nifti(content):
    return nib.Nifti1Image.from_bytes(gzip.decompress(content))


def test_a_run_is_listed_by_score_with_one_colour_scale(viewer, cohort):
    run = json.loads(ask(viewer, "run.json")[2])
    finished = [case for case in run["cases"] if case["finished"]]
    assert [case["case"] for case in run["cases"]][-1] == "e_T2w"
    assert "<NaN>" in run["cases"][-1]["message"]
    assert [case["score"] for case in finished] == sorted((case["score"] for case in finished), reverse=True)
    assert run["top"] > max(cohort.threshold, *(case["score"] for case in finished)) * 0.99
    assert len(run["colours"]) == 256
    assert run["units"] == "residual"


def test_maps_come_as_they_lie_and_the_scan_without_its_header(viewer, cohort):
    number, case = first(viewer)
    path = cohort.root / f"{case}.nii.gz"
    named = nib.load(path)
    named.header["descrip"] = b"JANE DOE 1970"
    nib.save(named, path)
    assert json.loads(ask(viewer, f"cases/{number}.json")[2])["layers"] == ["scan", "reconstruction", "anomaly", "mask"]
    for kind, file in (("anomaly", "anomaly"), ("reconstruction", "reconstruction"), ("mask", "anomaly-mask")):
        assert ask(viewer, f"cases/{number}/{kind}.nii.gz")[2] == (cohort.out / f"{case}_{file}.nii.gz").read_bytes()
    content = ask(viewer, f"cases/{number}/scan.nii.gz")[2]
    assert np.array_equal(nifti(content).get_fdata(), named.get_fdata())
    assert np.allclose(nifti(content).affine, named.affine)
    assert b"JANE" not in gzip.decompress(content)


def test_uncertainty_is_a_layer_with_its_own_scale(viewer, cohort):
    number, case = first(viewer)
    assert json.loads(ask(viewer, f"cases/{number}.json")[2])["uncertainty_top"] is None
    shutil.copyfile(cohort.out / f"{case}_anomaly.nii.gz", cohort.out / f"{case}_uncertainty.nii.gz")
    with serving(cohort.out) as server:
        details = json.loads(ask(server, f"cases/{number}.json")[2])
        assert details["layers"][-1] == "uncertainty"
        assert 0 < details["uncertainty_top"] <= cohort.scans[case].map.max() * 1.1
        assert ask(server, f"cases/{number}/uncertainty.nii.gz")[0] == 200


def test_the_truth_is_a_layer_of_its_voxels(viewer, cohort):
    assert ask(viewer, "cases/0/truth.nii.gz")[0] == 404
    with open_viewer(cohort.out, reference=cohort.reference) as server:
        names = [case["case"] for case in server.catalogue.summary["cases"]]
        details = server.catalogue.details(names.index("a_T2w"))
        assert details["layers"] == ["scan", "reconstruction", "anomaly", "mask", "truth"]
        shown = nifti(server.catalogue.volume(names.index("a_T2w"), "truth"))
        assert np.array_equal(np.asarray(shown.dataobj) > 0, cohort.scans["a_T2w"].label)
        assert [round(lesion["ml"], 6) for lesion in details["lesions"]] == [27 * 9 / 1000]
        assert server.catalogue.details(names.index("c_T2w"))["lesions"] == []


def test_findings_are_those_of_the_table_and_places_become_voxels(viewer, cohort):
    number, case = first(viewer)
    details = json.loads(ask(viewer, f"cases/{number}.json")[2])
    mask = cohort.scans[case].map > cohort.threshold
    found = locate(mask, cohort.brain, cohort.affine, values=cohort.scans[case].map).components
    assert [part["number"] for part in details["findings"]] == list(range(1, len(found) + 1))
    assert [part["mm"] for part in details["findings"]] == [list(part.centre_mm) for part in found]
    for part in found:
        voxel = np.array(details["to_voxel"]) @ [*part.centre_mm, 1]
        assert voxel[:3] == pytest.approx(part.centre_voxel)
        slices = np.array(details["to_slice"]) @ [*part.centre_mm, 1]
        assert slices[:3] == pytest.approx(canonical_index(part.centre_voxel, cohort.affine, mask.shape))
    assert details["shape"] == list(mask.shape)


def test_masks_and_findings_follow_a_chosen_threshold(cohort):
    with serving(cohort.out, choice=Choice(threshold=0.3)) as server:
        listed = server.catalogue.summary["cases"]
        first = cohort.scans[listed[0]["case"]].map
        status, _, content = ask(server, "cases/0/mask.nii.gz")
        assert status == 200
        mask = nifti(content).get_fdata()
        assert (mask == (first > 0.3)).all()
        assert listed[0]["threshold"] == 0.3
        assert "A person chose" in listed[0]["chosen"]
        found = json.loads(ask(server, "cases/0.json")[2])["findings"]
        voxel_ml = abs(np.linalg.det(cohort.affine[:3, :3])) / 1000
        assert sum(part["ml"] for part in found) == pytest.approx((first > 0.3).sum() * voxel_ml)


def test_ratings_land_beside_the_maps_and_each_reader_sees_his_own(viewer, cohort):
    status, answer = post(viewer, "ratings", GOOD)
    assert (status, json.loads(answer)["rating"]) == (200, "real")
    before = (cohort.out / "ratings.tsv").read_bytes()
    assert (
        post(viewer, "ratings", GOOD | {"reader": "ben", "rating": "artefact", "comment": 'tab\tand "quote"\n'})[0]
        == 200
    )
    assert post(viewer, "ratings", GOOD | {"rating": "unsure"})[0] == 200
    assert (cohort.out / "ratings.tsv").read_bytes().startswith(before)  # nothing is ever taken back
    rows = read_table(cohort.out / "ratings.tsv").rows
    case = first(viewer)[1]
    assert [(row["reader"], row["case"], row["rating"]) for row in rows] == [
        ("anna", case, "real"),
        ("ben", case, "artefact"),
        ("anna", case, "unsure"),
    ]
    assert rows[1]["comment"] == 'tab and "quote"'
    part = json.loads(ask(viewer, "cases/0.json")[2])["findings"][0]
    assert [float(rows[0][name]) for name in ("x_mm", "y_mm", "z_mm")] == part["mm"]
    assert float(rows[0]["volume_ml"]) == pytest.approx(part["ml"])
    assert rows[0]["model_hash"] == "ab" * 32
    own = json.loads(ask(viewer, "ratings?reader=anna")[2])
    assert [(item["number"], item["finding"], item["rating"]) for item in own] == [(0, 1, "unsure")]
    assert json.loads(ask(viewer, "ratings?reader=carl")[2]) == json.loads(ask(viewer, "ratings")[2]) == []


@pytest.mark.parametrize(
    "wrong",
    [
        {"rating": "maybe"},
        {"reader": " "},
        {"reader": "x" * 61},
        {"comment": "x" * 1001},
        {"finding": 0},
        {"finding": 9999},
        {"number": 4},
        {"number": -1},
        {"finding": "first"},
        {"number": None},
    ],
)
def test_what_is_no_rating_is_refused(viewer, cohort, wrong):
    assert post(viewer, "ratings", GOOD | wrong)[0] == 400
    assert not (cohort.out / "ratings.tsv").exists()


def test_only_the_own_page_may_rate(viewer, cohort):
    port = viewer.server_address[1]
    assert post(viewer, "ratings", GOOD, token=False)[0] == 403
    assert post(viewer, "ratings", GOOD, Origin="http://evil.example")[0] == 403
    assert post(viewer, "ratings", GOOD, **{"Content-Type": "text/plain"})[0] == 403  # what a foreign form can send
    assert post(viewer, "ratings", GOOD, Host="evil.example")[0] == 421
    assert post(viewer, "ratings", b"", **{"Content-Length": "20000"})[0] == 413  # refused before it is read
    assert post(viewer, "ratings", b"[1]")[0] == 400
    assert not (cohort.out / "ratings.tsv").exists()
    assert post(viewer, "ratings", GOOD, Origin=f"http://127.0.0.1:{port}")[0] == 200


def first(server):
    run = json.loads(ask(server, "run.json")[2])
    return 0, run["cases"][0]["case"]


PATHS = ["", "run.json", "viewer.js", "niivue.umd.js", "cases/0.json", "cases/0/anomaly.nii.gz", "cases/0/scan.nii.gz"]


@pytest.mark.parametrize("path", PATHS)
def test_nothing_without_the_token(viewer, path):
    assert ask(viewer, path)[0] == 200
    token = viewer.url.split("/")[-2]
    for wrong in (
        "",
        token[:-1] + "/",
        token + "x/",
        token.swapcase() + "/",
        "x" * len(token) + "/",
        "open/",
        f"open/{token}/",
    ):
        status, headers, content = ask(viewer, wrong + path, token=False)
        assert status == 403
        assert len(content) < 100
        assert token.encode() not in content
        assert "default-src 'none'" in headers["Content-Security-Policy"]


@pytest.mark.parametrize(
    "hosts",
    [
        [],
        ["evil.example"],
        ["127.0.0.1.evil.example"],
        ["evil.example:80"],
        ["127.0.0.1@evil.example"],
        ["0.0.0.0"],
        [""],
        ["localhost", "evil.example"],
    ],
)
def test_another_host_is_refused_even_with_the_token(viewer, hosts):
    assert ask(viewer, "run.json", hosts=hosts)[0] == 421


def test_a_forwarded_port_is_served(viewer):
    assert ask(viewer, "run.json", hosts=["localhost:9"])[0] == 200


@pytest.mark.parametrize("method", ["PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "CONNECT", "FETCH"])
def test_only_reading_is_allowed(viewer, method):
    status, headers, _ = ask(viewer, "run.json", method=method)
    assert status == 405
    assert headers["Allow"] == "GET, HEAD"
    assert ask(viewer, "ratings", method=method)[0] == 405


def test_only_ratings_can_be_posted(viewer, cohort):
    for path in ("run.json", "", "cases/0.json", "ratings/", "ratings.tsv", "../ratings"):
        assert post(viewer, path, GOOD)[0] == 405
    assert not (cohort.out / "ratings.tsv").exists()


def test_head_is_get_without_content(viewer):
    got, asked = ask(viewer, "cases/0.json"), ask(viewer, "cases/0.json", method="HEAD")
    assert asked[0] == 200
    assert asked[2] == b""
    assert asked[1].items() == got[1].items()
    assert "Server" not in got[1]


@pytest.mark.parametrize(
    "path",
    [
        "../brain.nii.gz",
        "..%2fbrain.nii.gz",
        "cases/0/../../../brain.nii.gz",
        "cases/0/%2e%2e/x.nii.gz",
        "/etc/passwd",
        "//etc/passwd",
        "cases.tsv",
        "out/cases.tsv",
        "a_T2w_anomaly.nii.gz",
        "cases/0/sidecar.nii.gz",
        "cases/4/anomaly.nii.gz",
        "cases/4.json",
        "cases/99.json",
        "cases/-1.json",
        "cases/0",
        "cases/0/scan",
        "static/viewer.js",
        "cases/0/anomaly.nii.gz%00",
    ],
)
def test_a_path_leads_nowhere_but_to_what_is_listed(viewer, path):
    assert ask(viewer, path)[0] == 404


def test_a_map_that_links_out_of_the_folder_is_refused(viewer, cohort):
    number, case = first(viewer)
    inside, outside = cohort.out / f"{case}_anomaly.nii.gz", cohort.root / "elsewhere.nii.gz"
    shutil.move(inside, outside)
    inside.symlink_to(outside)
    for path in (f"cases/{number}/anomaly.nii.gz", f"cases/{number}.json", f"cases/{number}/scan.nii.gz"):
        assert ask(viewer, path)[0] == 404
    inside.unlink()
    shutil.move(outside, cohort.out / "kept.nii.gz")
    inside.symlink_to(cohort.out / "kept.nii.gz")
    assert ask(viewer, f"cases/{number}/anomaly.nii.gz")[0] == 200


def test_a_sidecar_cannot_name_other_files(cohort):
    sidecar = cohort.out / "a_T2w_anomaly.json"
    content = json.loads(sidecar.read_text()) | {"outputs": {"anomaly": "../brain.nii.gz", "mask": "cases.tsv"}}
    secret = cohort.root / "secret.txt"
    secret.write_text("not a scan")
    sidecar.write_text(json.dumps(content | {"image": str(secret)}))
    with serving(cohort.out) as server:
        number = [case["case"] for case in json.loads(ask(server, "run.json")[2])["cases"]].index("a_T2w")
        for kind in ("anomaly", "mask", "scan"):
            assert ask(server, f"cases/{number}/{kind}.nii.gz")[0] == 404
    sidecar.write_text(json.dumps(json.loads(sidecar.read_text()) | {"outputs": {}}))
    with serving(cohort.out) as server:
        assert ask(server, f"cases/{number}/anomaly.nii.gz")[0] == 200
        assert ask(server, f"cases/{number}/scan.nii.gz")[0] == 404
        details = json.loads(ask(server, f"cases/{number}.json")[2])
    assert "scan" not in details["layers"]
    assert "not shown" in details["notes"][-1]


def test_a_scan_of_another_grid_is_not_shown(viewer, cohort):
    number, case = first(viewer)
    nib.save(nib.Nifti1Image(np.ones((4, 4, 4), np.float32), np.eye(4)), cohort.root / f"{case}.nii.gz")
    details = json.loads(ask(viewer, f"cases/{number}.json")[2])
    assert details["layers"] == ["reconstruction", "anomaly", "mask"]
    assert "grid" in details["notes"][0]
    assert details["note_levels"][0] == "warning"


def test_the_address_for_the_browser_works_once(viewer):
    launch = viewer.launch_url()
    path = launch.split("/", 3)[3]
    status, headers, _ = ask(viewer, path, token=False)
    assert status == 303
    assert viewer.url.endswith(headers["Location"])
    assert viewer.url.split("/")[-2] not in launch
    assert ask(viewer, path, token=False)[0] == 403


def test_only_the_loopback_is_bound_and_a_taken_port_is_told(viewer, cohort):
    host, port = viewer.server_address[:2]
    assert host == "127.0.0.1"
    with pytest.raises(OutputError, match=f"port {port}"):
        open_viewer(cohort.out, port)


def test_a_folder_without_maps_is_an_error(tmp_path):
    with pytest.raises(InputError, match="no cases"):
        open_viewer(tmp_path)
    (tmp_path / "cases.tsv").write_text("case\tstatus\tmessage\na\tfailed\tbad\n")
    with pytest.raises(InputError, match="no scan"):
        open_viewer(tmp_path)


@pytest.mark.parametrize("codes", ["RAS", "LPI", "ASR", "SLP"])
def test_the_most_anomalous_voxel_is_that_of_the_array(codes):
    world = np.zeros((16, 20, 12), np.float32)
    world[11:14, 3:6, 7:10] = 1
    ras = nib.Nifti1Image(world, np.diag([3.0, 2.0, 4.0, 1.0]))
    turned = ras.as_reoriented(
        nib.orientations.ornt_transform(nib.orientations.axcodes2ornt("RAS"), nib.orientations.axcodes2ornt(codes))
    )
    voxel = most_anomalous_voxel(np.asarray(turned.dataobj), turned.affine)
    assert (turned.affine @ [*voxel, 1])[:3].tolist() == (ras.affine @ [12, 4, 8, 1])[:3].tolist()


def test_niivue_is_the_file_that_its_licence_names():
    static = resources.files("maediff.viewer") / "static"
    text = (static / "niivue.LICENSE.txt").read_text()
    assert hashlib.sha256((static / "niivue.umd.js").read_bytes()).hexdigest() in text
    assert "BSD 2-Clause License" in text


def test_the_page_names_no_other_host():
    static = resources.files("maediff.viewer") / "static"
    for name in ("index.html", "viewer.css", "viewer.js"):
        assert not re.search(r"https?:|//[a-z]+\.", (static / name).read_text())


@pytest.mark.slow
def test_the_command_prints_its_address_and_ends_on_ctrl_c(cohort):
    command = [sys.executable, "-m", "maediff", "view", str(cohort.out), "--no-browser"]

    def heed_ctrl_c():
        """Undo what a shell does to jobs in the background, which children would inherit: SIGINT ignored."""
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=heed_ctrl_c
    ) as process:
        try:
            url = process.stdout.readline().strip()
            assert re.fullmatch(r"http://127\.0\.0\.1:\d+/[\w-]{43}/", url)
            assert "Ctrl-C" in process.stderr.readline()
            connection = http.client.HTTPConnection(url.split("/")[2], timeout=20)
            connection.request("GET", "/" + url.split("/", 3)[3])
            assert b"Research use only" in connection.getresponse().read()
            connection.close()
            process.send_signal(signal.SIGINT)
            _, errors = process.communicate(timeout=60)
        finally:
            process.kill()
    assert process.returncode == 0
    assert errors.strip() == "viewer closed"


def test_the_command_sends_the_browser_to_an_address_for_once(cohort, monkeypatch):
    opened = queue.Queue()
    monkeypatch.setattr("webbrowser.open", opened.put)
    monkeypatch.setattr("maediff.viewer.ViewerServer.serve_forever", lambda _self: _interrupt())
    result = CliRunner().invoke(app, ["view", str(cohort.out)])
    assert result.exit_code == 0, result.output
    url = opened.get(timeout=20)
    assert re.fullmatch(r"http://127\.0\.0\.1:\d+/open/[\w-]{43}", url)
    assert url not in result.output


def _interrupt():
    raise KeyboardInterrupt


@pytest.mark.slow
def test_the_page_shows_the_maps_in_a_real_browser(viewer, cohort, browser):
    run = json.loads(ask(viewer, "run.json")[2])
    names = [case["case"] for case in run["cases"]]
    values = cohort.scans[names[0]].map
    ready = "document.body?.dataset.state == 'ready' && document.body.dataset.number == '{}'"
    browser.send("Page.navigate", url=viewer.launch_url())
    browser.wait_for("document.body?.dataset.state != 'loading'")
    browser.wait_for(ready.format(0))
    assert browser.value("document.getElementById('name').textContent") == names[0]
    assert "0.600 (calibrated)" in browser.value("document.getElementById('cut').textContent")
    expected = np.count_nonzero(values > np.float32(cohort.threshold)) * 2.0 * 1.5 * 3.0 / 1000
    assert browser.value("document.getElementById('above').textContent") == f"{expected:.1f} ml"
    details = json.loads(ask(viewer, "cases/0.json")[2])
    place = details["findings"][0]["mm"]  # opens at the largest finding
    peak = np.rint(np.linalg.inv(cohort.affine) @ [*place, 1]).astype(int)[:3]
    assert f"Anomaly map\n{values[tuple(peak)]:.3f}" in browser.value("document.getElementById('here').innerText")
    assert "Research use only" in browser.value("document.body.innerText")
    assert "e_T2w" in browser.value("document.querySelector('.failed').innerText")

    warm = browser.map_pixels()
    browser.press(" ")
    browser.wait_for("!waiting && !state.map")
    assert warm > 50 > browser.map_pixels()
    browser.press(" ")
    for _ in range(50):
        browser.press(",")
    browser.wait_for("!waiting && state.threshold == 0")
    assert browser.map_pixels() > warm
    browser.press("k")
    second = details["findings"][1]["mm"]
    browser.wait_for(f"state.finding == 1 && Math.hypot(...state.mm.map((v, k) => v - {second}[k])) < 2")
    assert "Voxel" in browser.value("document.getElementById('here').innerText")
    browser.press("y")
    browser.wait_for("document.getElementById('rated').textContent.includes('name')")  # who rates?
    browser.value(
        "r = document.getElementById('reader'); r.value = 'anna'; r.dispatchEvent(new Event('change')); r.blur()"
    )
    browser.press("y")
    browser.wait_for("document.getElementById('rated').textContent.startsWith('Finding 2; 1 of')")
    assert [row["finding"] for row in read_table(cohort.out / "ratings.tsv").rows] == ["2"]

    before = browser.value("[...layer('scan').img].slice(0, 999).join()")
    browser.press("r")  # the reconstruction takes the scan's place: the map stays above it, in 3-D as well
    browser.wait_for("!waiting && state.base && swapped")
    assert browser.value("[...layer('scan').img].slice(0, 999).join()") != before
    assert browser.map_pixels() > 50
    browser.press("b")
    browser.wait_for("!state.base")
    browser.press("b")
    browser.wait_for("blinking === null && !waiting && !swapped")
    assert browser.value("[...layer('scan').img].slice(0, 999).join()") == before
    browser.value("setWindow(150, 100)")
    browser.wait_for(f"!waiting && layer('scan').cal_max > {details['window'][1]}")
    browser.value("writeAddress()")
    address = browser.value("location.hash")
    assert f"scan={names[0]}" in address
    browser.send("Page.navigate", url="about:blank")
    browser.send("Page.navigate", url=viewer.url + address)
    browser.wait_for(ready.format(0))
    browser.wait_for(f"Math.hypot(...state.mm.map((v, k) => v - {second}[k])) < 2 && state.threshold == 0")
    browser.press("n")
    browser.wait_for(ready.format(1))
    assert browser.value("document.getElementById('name').textContent") == names[1]
    for key in ("p", "p"):  # round the corner, past the failed scan
        browser.press(key)
    browser.wait_for(ready.format(3))

    asked = [e["params"]["request"]["url"] for e in browser.events if e["method"] == "Network.requestWillBeSent"]
    origin = "/".join(viewer.url.split("/")[:3]) + "/"
    assert len(asked) > 10
    assert all(url.startswith((origin, "data:")) for url in asked)
    complaints = [e for e in browser.events if e["method"] in {"Log.entryAdded", "Runtime.exceptionThrown"}]
    assert complaints == []
