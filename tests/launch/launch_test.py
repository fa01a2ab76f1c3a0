"""Launchers, with fakes of gcloud, srun, kubectl and jaxrl on PATH."""

import os
import pathlib
import signal
import subprocess
import time

import pytest
import yaml

LAUNCH = pathlib.Path(__file__).parents[2] / "scripts" / "launch"
SCRIPTS = ("restart.sh", "tpu_vm.sh", "gke.sh", "slurm.sbatch")
ODD = """a b "c" 'd' \\e $HOME & ü"""

# Writes down how it was called, then ends with the next of the codes.
JAXRL = """#!/usr/bin/env bash
printf '%s\\n' "$@" >>"$CALLS"
code="$(head -n 1 "$CODES")"
sed -i 1d "$CODES"
if [ "$code" = wait ]; then
  trap 'sleep 0.3; echo saved >>"$CALLS"; exit 143' TERM
  echo ready >>"$CALLS"
  for ((i = 0; i < 200; i++)); do sleep 0.05; done
fi
exit "${code:-0}"
"""
# Does on a host, which is here, what it is told; has the flags of release 528.
GCLOUD = """#!/usr/bin/env bash
printf '%s\\n' "$@" >>"$GCLOUD_CALLS"
for word in "$@"; do
  case $word in
  --zone=* | --project=* | --worker=* | --command=*) ;;
  -*) echo "unrecognized arguments: $word" >&2 && exit 2 ;;
  esac
done
for word in "$@"; do
  case $word in --command=*) cd "$HOST" && exec bash -c "${word#*=}" ;; esac
done
"""
SRUN = '#!/usr/bin/env bash\nshift\nexec "$@"\n'
RECORD = """#!/usr/bin/env bash
printf '%s\\n' "${0##*/} $*" >>"$CALLS"
case "$*" in *"-f -") cat >>"$CALLS" ;; esac
"""
FAKES = {
  "jaxrl": JAXRL,
  "gcloud": GCLOUD,
  "srun": SRUN,
  "scontrol": RECORD,
  "kubectl": RECORD,
}
GKE = {"NAME": "a", "IMAGE": "b:1", "TOPOLOGY": "v5e:8x8", "CLAIM": "c"}
TPU = {"TPU": "slice", "ZONE": "zone"}
SLURM = {"SLURM_JOB_ID": "7"}


class Place:
  """Fakes on PATH in a folder of their own, and what they wrote down."""

  def __init__(self, folder):
    self._folder = folder
    (folder / "bin").mkdir()
    for name, text in FAKES.items():
      (folder / "bin" / name).write_text(text)
      (folder / "bin" / name).chmod(0o755)

  def environment(self, codes, more):
    (self._folder / "CODES").write_text("".join(f"{code}\n" for code in codes))
    names = ("CALLS", "CODES", "GCLOUD_CALLS", "HOST")
    return {
      "PATH": f"{self._folder / 'bin'}:{os.environ['PATH']}",
      "HOME": str(self._folder),
      "PAUSE": "0",
      **{name: str(self._folder / name) for name in names},
      **more,
    }

  def start(self, script, *args, codes=(), **more):
    return subprocess.Popen(
      [str(LAUNCH / script), *args],
      env=self.environment(codes, more),
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
    )

  def run(self, script, *args, codes=(), **more):
    process = self.start(script, *args, codes=codes, **more)
    out, err = process.communicate(timeout=30)
    return process.returncode, out, err

  def calls(self, name="CALLS"):
    path = self._folder / name
    return path.read_text().splitlines() if path.exists() else []

  def wait_for(self, line):
    deadline = time.monotonic() + 20
    while line not in self.calls():
      assert time.monotonic() < deadline, f"never {line!r}: {self.calls()}"
      time.sleep(0.02)


@pytest.fixture
def place(tmp_path):
  return Place(tmp_path)


ONCE = ["train", "config", "--name", ODD, "--auto-resume"]


@pytest.mark.parametrize(
  ("codes", "tries", "ends"),
  [
    ([0], 1, 0),
    ([3, 137, 0], 3, 0),
    ([2], 1, 2),
    ([3, 2], 2, 2),
    ([143], 1, 143),
    ([3, 3, 3, 3], 3, 3),
  ],
)
def test_a_host_starts_again_unless_done_wrong_or_stopped(
  place, codes, tries, ends
):
  code, _, _ = place.run(
    *("restart.sh", "config", "--name", ODD), codes=codes, RESTARTS="2"
  )
  assert code == ends
  assert place.calls() == ONCE * tries


def test_a_signal_goes_on_and_its_save_is_waited_for(place):
  process = place.start("restart.sh", "config", codes=["wait", 0])
  place.wait_for("ready")
  process.send_signal(signal.SIGTERM)
  assert process.wait(timeout=20) == 143
  assert place.calls()[-1] == "saved"


def test_a_pod_is_started_watched_and_stopped(place, tmp_path):
  """gcloud's fake runs the commands of the hosts in a folder here."""
  scripts = tmp_path / "HOST" / "jaxrl_llm" / "scripts"
  scripts.mkdir(parents=True)
  (scripts / "launch").symlink_to(LAUNCH)
  program = tmp_path / "HOST" / "jaxrl_llm" / ".venv" / "bin" / "jaxrl"
  program.parent.mkdir(parents=True)
  program.symlink_to(tmp_path / "bin" / "jaxrl")

  args = ("start", "config", "--name", ODD, "--runs", "/runs")
  code, _, err = place.run("tpu_vm.sh", *args, codes=["wait"], **TPU)
  assert (code, err) == (0, "")
  place.wait_for("ready")
  assert place.calls()[:6] == ["train", *args[1:]]
  assert "running" in place.run("tpu_vm.sh", "status", codes=["wait"], **TPU)[1]
  code, _, err = place.run("tpu_vm.sh", *args, **TPU)
  assert code == 2 and "a run is going on" in err
  assert place.run("tpu_vm.sh", "stop", **TPU)[0] == 0
  place.wait_for("saved")
  called = place.calls("GCLOUD_CALLS")
  words = "compute tpus tpu-vm ssh slice --zone=zone --worker=all"
  assert called[:6] == [*words.split()[:5], "--zone=zone"]
  assert called.count("--worker=all") == 4


def test_this_commit_is_copied_to_every_host(place, tmp_path):
  (tmp_path / "HOST").mkdir()
  code, _, err = place.run("tpu_vm.sh", "install", PROJECT="p", **TPU)
  called = place.calls("GCLOUD_CALLS")
  assert "scp" in called and "slice:jaxrl_llm.tar.gz" in called
  assert called.count("--project=p") == called.count("--worker=all") == 2
  assert code != 0  # the fake copies nothing, so tar finds no archive


@pytest.mark.parametrize(
  ("codes", "requeued", "ends"),
  [([0], False, 0), ([3], True, 0), ([2], False, 2), ([143], False, 143)],
)
def test_a_slurm_job_goes_back_to_the_queue(place, codes, requeued, ends):
  args = ("config", "--name", ODD, "--runs", "/runs")
  code, _, _ = place.run("slurm.sbatch", *args, codes=codes, **SLURM)
  assert code == ends
  asked = ["scontrol requeue 7"] if requeued else []
  assert place.calls() == ["train", *args, "--auto-resume", *asked]


def test_a_slurm_job_out_of_time_saves_and_is_queued_again(place):
  args = ("config", "--runs", "/runs")
  process = place.start("slurm.sbatch", *args, codes=["wait"], **SLURM)
  place.wait_for("ready")
  process.send_signal(signal.SIGUSR1)
  process.wait(timeout=20)
  assert place.calls()[-2:] == ["saved", "scontrol requeue 7"]


def test_a_slurm_job_gives_up(place):
  code, _, err = place.run(
    *("slurm.sbatch", "config", "--runs", "/runs"),
    codes=[3],
    SLURM_RESTART_COUNT="20",
    **SLURM,
  )
  assert code == 3 and "giving up" in err
  assert not [line for line in place.calls() if "requeue" in line]


@pytest.mark.parametrize(
  ("topology", "hosts", "accelerator", "chips"),
  [
    ("v5e:8x8", 16, "tpu-v5-lite-podslice", "4"),
    ("v5p:2x2x4", 4, "tpu-v5p-slice", "4"),
    ("v6e:2x4", 1, "tpu-v6e-slice", "8"),
  ],
)
def test_the_manifest_has_a_pod_for_each_host(
  place, topology, hosts, accelerator, chips
):
  args = ("print", "config", "--name", ODD)
  settings = GKE | {"TOPOLOGY": topology, "CHIPS_PER_HOST": chips}
  code, out, err = place.run("gke.sh", *args, SLICES="2", **settings)
  assert (code, err) == (0, "")
  manifest = yaml.safe_load(out)
  assert manifest["apiVersion"] == "jobset.x-k8s.io/v1alpha2"
  assert (manifest["kind"], manifest["metadata"]["name"]) == ("JobSet", "a")
  (job,) = manifest["spec"]["replicatedJobs"]
  work = job["template"]["spec"]
  assert job["replicas"] == 2
  assert work["parallelism"] == work["completions"] == hosts
  assert work["backoffLimit"] == 0
  pod = work["template"]["spec"]
  assert pod["restartPolicy"] == "Never"
  assert set(pod["nodeSelector"].values()) == {
    accelerator,
    topology.split(":")[1],
  }
  (container,) = pod["containers"]
  assert container["image"] == "b:1"
  assert container["resources"]["limits"] == {"google.com/tpu": int(chips)}
  assert container["args"] == [
    *args[1:],
    *("--runs", "/runs", "--auto-resume"),
  ]
  (rule,) = work["podFailurePolicy"]["rules"]
  assert rule["onExitCodes"]["containerName"] == container["name"]
  assert "$" not in out.replace("$HOME", "").split("apiVersion")[1]


def test_the_manifest_is_handed_to_kubectl(place):
  assert place.run("gke.sh", "start", "config", **GKE)[0] == 0
  called, *text = place.calls()
  assert called == "kubectl apply -f -"
  assert yaml.safe_load("\n".join(text))["kind"] == "JobSet"


WRONG = [
  ("restart.sh", [], {}, "say which config"),
  ("restart.sh", ["config"], {"JAXRL": "no-such"}, "JAXRL=no-such"),
  ("restart.sh", ["config"], {"RESTARTS": "many"}, "RESTARTS and PAUSE"),
  ("tpu_vm.sh", ["begin"], TPU, "got 'begin'"),
  ("tpu_vm.sh", ["status"], {"ZONE": "z"}, "TPU is not set"),
  ("tpu_vm.sh", ["status"], {"TPU": "t"}, "ZONE is not set"),
  ("tpu_vm.sh", ["status"], TPU | {"FOLDER": "a b"}, "got 'a b'"),
  ("tpu_vm.sh", ["start"], TPU, "say which config"),
  ("tpu_vm.sh", ["start", "config"], TPU, "--runs is missing"),
  ("gke.sh", ["print", "config"], GKE | {"NAME": "A_b"}, "got 'A_b'"),
  ("gke.sh", ["print", "config"], GKE | {"IMAGE": ""}, "IMAGE is not set"),
  ("gke.sh", ["print", "config"], GKE | {"TOPOLOGY": "v5e"}, "got 'v5e'"),
  ("gke.sh", ["print", "config"], GKE | {"SLICES": "0"}, "got '0'"),
  ("gke.sh", ["print", "config"], GKE | {"CHIPS_PER_HOST": "3"}, "64 chips"),
  ("gke.sh", ["print", "config", "--runs", "x"], GKE, "leave it out"),
  ("gke.sh", ["print"], GKE, "say which config"),
  ("gke.sh", ["begin"], GKE, "got 'begin'"),
  ("slurm.sbatch", ["config"], {}, "start me with sbatch"),
  ("slurm.sbatch", [], SLURM, "say which config"),
  ("slurm.sbatch", ["config"], SLURM, "--runs is missing"),
]


@pytest.mark.parametrize(("script", "args", "more", "message"), WRONG)
def test_mistakes_are_one_line(place, script, args, more, message):
  code, _, err = place.run(script, *args, **more)
  assert code == 2 and err.count("\n") == 1
  assert err.startswith(f"{script}: ") and message in err


@pytest.mark.parametrize("script", SCRIPTS)
def test_scripts_are_correct_bash(script):
  done = subprocess.run(["bash", "-n", LAUNCH / script], capture_output=True)
  assert (done.returncode, done.stderr) == (0, b"")
  assert os.access(LAUNCH / script, os.X_OK)
