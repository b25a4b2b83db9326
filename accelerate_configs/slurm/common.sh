# shellcheck shell=bash
# What the jobs have in common; to be sourced. SCANLINE_HOME is the folder of the project (where sbatch was called), with
# a virtual environment in .venv, or SCANLINE_IMAGE an Apptainer image (apptainer.def) to run in.
cd "${SCANLINE_HOME:-$SLURM_SUBMIT_DIR}" || exit 1
mkdir -p runs
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-${SLURM_CPUS_PER_TASK:-1}}"
if [[ -z "${SCANLINE_IMAGE:-}" && -f .venv/bin/activate ]]; then
    # shellcheck disable=SC1091
    source .venv/bin/activate
fi

# where run_classification.py will write, from the arguments of the job
output_dir='' runs_dir=runs previous=''
for argument in "$@"; do
    case "$previous" in
        --output[_-]dir) output_dir=$argument ;;
        --runs[_-]dir) runs_dir=$argument ;;
    esac
    case "$argument" in
        --output[_-]dir=*) output_dir=${argument#*=} ;;
        --runs[_-]dir=*) runs_dir=${argument#*=} ;;
    esac
    previous=$argument
done

# a job that is queued again keeps its number, and with this its folder
SCANLINE_RUN_TIME=''
of_this_job=("$runs_dir"/*_j"$SLURM_JOB_ID")
if [[ -d "${of_this_job[0]}" ]]; then
    SCANLINE_RUN_TIME=$(basename "${of_this_job[0]%_j*}")
fi
export SCANLINE_RUN_TIME="${SCANLINE_RUN_TIME:-$(date +%Y%m%d_%H%M%S)}"

# Runs a command; where SLURM warns that it will end the job, ends the command, and queues the job again.
run_until_done() {
    local in_image=()
    if [[ -n "${SCANLINE_IMAGE:-}" ]]; then
        in_image=(apptainer exec --nv --bind "$PWD" "$SCANLINE_IMAGE")
    fi
    # goes on from its last whole checkpoint, where there is one; else it starts once more
    local folder="${output_dir:-$runs_dir/${SCANLINE_RUN_TIME}_j${SLURM_JOB_ID}}" resume=()
    local checkpoints=("$folder"/checkpoint-*/trainer_state.json)
    # what lies in a folder that was asked for is this job's own only once it has been queued again
    if [[ -z "$output_dir" || "${SLURM_RESTART_COUNT:-0}" -gt 0 ]]; then
        if [[ -f "${checkpoints[0]}" ]]; then
            resume=(--resume_from_checkpoint true)
        else
            rm -f "$folder/metrics.jsonl"
        fi
    fi
    "${in_image[@]}" "$@" "${resume[@]}" &
    local process=$!
    # shellcheck disable=SC2064  # the number of the process as it is now
    trap "echo 'SLURM ends the job: it is queued again'; kill -TERM $process; scontrol requeue '$SLURM_JOB_ID'" USR1
    wait "$process"
}
