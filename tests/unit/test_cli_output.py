"""What a command prints, where it is more than a sentence."""

import pytest

from replicator.app.cli.output import table


@pytest.mark.parametrize("ids", [("58c804772bda", "3e4b3567b434"), ("58c804772bda", "ae4b3567b434")])
def test_the_column_of_ids_does_not_move_with_the_first_digit_of_one(
    ids: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    table([(one, "photos", "1,024") for one in ids], ("SNAPSHOT", "VOLUME", "ENTRIES"))
    assert capsys.readouterr().out.splitlines() == [
        "SNAPSHOT      VOLUME  ENTRIES",
        f"{ids[0]}  photos    1,024",
        f"{ids[1]}  photos    1,024",
    ]
