"""The panel's page "Steer": a rule that may move the scan, its limits, the switch that arms it, and the log."""

from __future__ import annotations

import gettext
import typing

from nion.utils import Model

from . import commands, live, rules, steering
from .panel_atoms import WIDTH, line

if typing.TYPE_CHECKING:
    from nion.swift.model import DataItem
    from nion.ui import Declarative

_ = gettext.gettext

_ACTIONS = (_("centre the scan on it"), _("zoom a sub-scan to it"), _("place the probe on it"))


class SteeringSection:
    """When a defect of a type appears: centre, zoom or place the probe. Off unless armed."""

    callbacks = ()

    def __init__(self) -> None:
        self.__data_item: DataItem.DataItem | None = None
        self.__steering: steering.Steering | None = None
        self.__listener: typing.Any = None
        self.__showing = False
        self.pattern = Model.PropertyModel[str]("Si*")
        self.action_index = Model.PropertyModel[int](0)
        self.range_nm = Model.PropertyModel[str]("3")
        self.dose = Model.PropertyModel[str]("1e10")
        self.beam_pa = Model.PropertyModel[str]("100")
        self.can_arm = Model.PropertyModel[bool](False)
        self.armed = Model.PropertyModel[bool](False)
        self.state = Model.PropertyModel[str](_("Disarmed: nothing is moved."))
        self.log = Model.PropertyModel[list[str]]([])
        self.log_index = Model.PropertyModel[int](None)
        #: The chosen line of the log, or the newest, in full: the list is narrow.
        self.log_line = Model.PropertyModel[str]("")
        self.log_index.on_value_changed = self.__show_line
        self.armed.on_value_changed = self.__switched

    def view(self, u: Declarative.DeclarativeUI) -> Declarative.UIDescription:
        """The page."""

        def field(label: str, name: str, unit: str) -> Declarative.UIDescription:
            return u.create_row(
                u.create_label(text=label, width=120),
                u.create_line_edit(text=f"@binding(steer.{name}.value)", width=76),
                u.create_label(text=unit),
                u.create_stretch(),
                spacing=6,
            )

        return u.create_column(
            field(_("When a defect"), "pattern", _("appears,")),
            u.create_row(
                u.create_combo_box(items=list(_ACTIONS), current_index="@binding(steer.action_index.value)", width=180),
                u.create_stretch(),
            ),
            field(_("Never farther than"), "range_nm", "nm"),
            field(_("Dose on it at most"), "dose", "e/nm\N{SUPERSCRIPT TWO}"),
            field(_("Beam current"), "beam_pa", "pA"),
            u.create_row(
                u.create_check_box(
                    text=_("ARMED: may move the scan"),
                    checked="@binding(steer.armed.value)",
                    enabled="@binding(steer.can_arm.value)",
                ),
                u.create_stretch(),
            ),
            line(u, "@binding(steer.state.value)", font="bold"),
            u.create_list_box(
                items_ref="@binding(steer.log.value)",
                current_index="@binding(steer.log_index.value)",
                height=170,
                min_width=WIDTH,
            ),
            line(u, "@binding(steer.log_line.value)"),
            u.create_stretch(),
            spacing=6,
            margin=6,
        )

    def close(self) -> None:
        """Forget all that is listened to; what is armed is disarmed."""
        if self.__listener:
            self.__listener.close()
        if self.__steering is not None:
            self.__steering.disarm(_("the panel was closed"))
        self.__listener = self.__steering = self.__data_item = None

    def follow(self, data_item: DataItem.DataItem | None) -> None:
        """Another image."""
        self.__data_item = data_item
        found = steering.find(data_item)
        if found is not None:
            self.__watch(found)
        self.can_arm.value = live.find(data_item) is not None
        self.__show()

    def __watch(self, found: steering.Steering) -> None:
        if found is not self.__steering:
            if self.__listener:
                self.__listener.close()
            self.__steering = found
            self.__listener = found.changed_event.listen(self.__show)

    def __show(self) -> None:
        self.__showing = True
        try:
            one = self.__steering
            armed = one is not None and one.is_armed
            self.armed.value = armed
            if one is not None:
                lines = list(one.log)[::-1][:50]
                if lines != self.log.value:
                    self.log_index.value = None
                    self.log.value = lines
                    self.__show_line(None)
            self.state.value = (
                _("ARMED, dose {:.2g} e/nm\N{SUPERSCRIPT TWO}").format(one.dose_e_per_nm2)
                if one is not None and armed
                else _("Disarmed: nothing is moved.")
            )
        finally:
            self.__showing = False

    def __show_line(self, index: int | None) -> None:
        lines = self.log.value or []
        chosen = index if index is not None and 0 <= index < len(lines) else 0
        self.log_line.value = lines[chosen] if lines else ""

    def __switched(self, armed: bool | None) -> None:
        if self.__showing:
            return
        if not armed:
            if self.__steering is not None:
                self.__steering.disarm(_("by hand"))
        else:
            self.__arm()
        self.__show()

    def __arm(self) -> None:
        annotation = live.find(self.__data_item)
        try:
            limits = rules.Limits(
                range_nm=float(self.range_nm.value or ""),
                dose_e_per_nm2=float(self.dose.value or ""),
                beam_pa=float(self.beam_pa.value or ""),
            )
        except ValueError:
            commands.notify(_("Not armed"), _("range, dose and current must be numbers"))
            return
        if annotation is None:
            commands.notify(_("Not armed"), _("go live on a running scan first"))
            return
        rule = rules.Rule(self.pattern.value or "*", rules.ACTIONS[self.action_index.value or 0])
        found = steering.find(self.__data_item)
        if found is None:
            found = steering.Steering(annotation, rule, limits=limits)
        else:
            found.decide, found.limits = rule, limits
        self.__watch(found)
        found.arm()
